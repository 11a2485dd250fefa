"""What every other package stands on: errors, caches, the device mesh, files that appear at once or not at all."""
