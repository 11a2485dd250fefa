"""Shows what runs did, as a page for a browser."""
