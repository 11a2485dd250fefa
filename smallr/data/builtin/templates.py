"""Draws questions: each template draws names and numbers, and says how its numbers are combined.

Sentences hold no numbers besides their equation, so that they stay true to a slip. Numbers are drawn without care for
whether divisions come out: `draw_problem` draws again until the solution is whole.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from smallr.data.builtin.problems import Problem, Step, solve

_PEOPLE = (
    *((name, "she", "her") for name in ("Maya", "Lena", "Rosa", "Ines", "Priya", "Hana", "Zoe", "Clara", "Amina")),
    *((name, "he", "his") for name in ("Omar", "Felix", "Ravi", "Jonas", "Kenji", "Diego", "Samuel", "Tariq", "Noah")),
)
_FRACTIONS = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth", 6: "a sixth", 8: "an eighth", 10: "a tenth"}

Template = Callable[[random.Random], Problem]


def draw_problem(rng: random.Random, templates: Sequence[Template] | None = None) -> Problem:
    """Returns a problem of a random template, of all by default, whose numbers differ and come out whole."""
    template = rng.choice(templates or TEMPLATES)
    while True:
        problem = template(rng)
        numbers = list(problem.givens.values())
        lines = solve(problem)
        # An answer that stands in the question, or two equal numbers, would hide a slip.
        if lines and len(set(numbers)) == len(numbers) and lines[-1].value not in numbers:
            return problem


def _round(rng: random.Random, low: int, high: int, step: int) -> int:
    return rng.randrange(low, high + 1, step)


def _bakery(rng: random.Random) -> Problem:
    (who, they, _), item = rng.choice(_PEOPLE), rng.choice(("muffins", "rolls", "biscuits", "pies", "buns"))
    g = {"trays": rng.randint(3, 12), "each": rng.randint(8, 24), "sold": rng.randint(10, 90), "box": rng.randint(3, 9)}
    return Problem(
        "bakery",
        f"{who} bakes {g['trays']} trays of {item} with {g['each']} {item} on every tray. {they.capitalize()} sells "
        f"{g['sold']} of them and packs the rest in boxes of {g['box']}. How many boxes does {they} fill?",
        f"the number of boxes that {who} fills",
        g,
        (
            Step("baked", "trays", "*", "each", f"The trays hold {{}} {item} in all."),
            Step("left", "baked", "-", "sold", f"After the sale {{}} {item} are left."),
            Step("boxes", "left", "/", "box", "They fill {} boxes."),
        ),
    )


def _change(rng: random.Random) -> Problem:
    who, they, _ = rng.choice(_PEOPLE)
    one, two = rng.sample(("pens", "notebooks", "folders", "brushes", "maps", "candles"), 2)
    g = {
        "n1": rng.randint(3, 9),
        "p1": rng.randint(2, 12),
        "n2": rng.randint(3, 9),
        "p2": rng.randint(2, 12),
        "paid": _round(rng, 60, 200, 10),
    }
    return Problem(
        "change",
        f"{who} buys {g['n1']} {one} at {g['p1']} dollars each and {g['n2']} {two} at {g['p2']} dollars each. "
        f"{they.capitalize()} pays with {g['paid']} dollars. How many dollars does {they} get back?",
        f"the change that {who} gets back",
        g,
        (
            Step("cost1", "n1", "*", "p1", f"The {one} cost {{}} dollars."),
            Step("cost2", "n2", "*", "p2", f"The {two} cost {{}} dollars."),
            Step("cost", "cost1", "+", "cost2", "Together that is {} dollars."),
            Step("back", "paid", "-", "cost", f"So {who} gets {{}} dollars back."),
        ),
    )


def _reading(rng: random.Random) -> Problem:
    (who, they, _), thing = rng.choice(_PEOPLE), rng.choice(("novel", "textbook", "history book", "travel guide"))
    g = {
        "pages": rng.randint(150, 480),
        "a_day": rng.randint(8, 30),
        "days": rng.randint(4, 12),
        "rest": rng.randint(3, 15),
    }
    return Problem(
        "reading",
        f"A {thing} has {g['pages']} pages. {who} reads {g['a_day']} pages a day for {g['days']} days and wants to finish "
        f"the rest in {g['rest']} days. How many pages a day must {they} read then?",
        f"the number of pages that {who} must read each day at the end",
        g,
        (
            Step("read", "a_day", "*", "days", f"At first {who} reads {{}} pages."),
            Step("left", "pages", "-", "read", f"That leaves {{}} pages of the {thing}."),
            Step("pace", "left", "/", "rest", "Split over the last days, that is {} pages a day."),
        ),
    )


def _ages(rng: random.Random) -> Problem:
    (old, *_), (young, *_) = rng.sample(_PEOPLE, 2)
    g = {"times": rng.randint(2, 6), "age": rng.randint(5, 18), "years": rng.randint(3, 20)}
    return Problem(
        "ages",
        f"{young} is {g['age']} years old, and {old} is {g['times']} times as old. What will the sum of their ages be in "
        f"{g['years']} years?",
        f"the sum of the ages of {young} and {old} in the future",
        g,
        (
            Step("older", "times", "*", "age", f"{old} is {{}} years old now."),
            Step("older_then", "older", "+", "years", f"Later {old} will be {{}}."),
            Step("younger_then", "age", "+", "years", f"By then {young} will be {{}}."),
            Step("sum", "older_then", "+", "younger_then", "Their ages will add up to {}."),
        ),
    )


def _journey(rng: random.Random) -> Problem:
    (who, they, _), verb = rng.choice(_PEOPLE), rng.choice(("drives", "rides", "travels"))
    g = {
        "h1": rng.randint(2, 6),
        "v1": _round(rng, 30, 95, 5),
        "h2": rng.randint(2, 6),
        "v2": _round(rng, 30, 95, 5),
        "trip": _round(rng, 300, 990, 10),
    }
    return Problem(
        "journey",
        f"{who} {verb} for {g['h1']} hours at {g['v1']} km an hour and then for {g['h2']} hours at {g['v2']} km an hour. "
        f"The whole trip is {g['trip']} km long. How many km does {they} still have to go?",
        "the distance that is left",
        g,
        (
            Step("first", "h1", "*", "v1", "The first part is {} km."),
            Step("second", "h2", "*", "v2", "The second part is {} km."),
            Step("done", "first", "+", "second", f"So far {who} has gone {{}} km."),
            Step("left", "trip", "-", "done", "There are {} km left."),
        ),
    )


def _discount(rng: random.Random) -> Problem:
    (who, they, _), item = rng.choice(_PEOPLE), rng.choice(("chairs", "lamps", "jackets", "kettles", "rugs", "helmets"))
    g = {"count": rng.randint(3, 15), "price": rng.randint(12, 80), "percent": _round(rng, 5, 60, 5)}
    return Problem(
        "discount",
        f"{who} buys {g['count']} {item} at {g['price']} dollars each. The shop takes {g['percent']}% off the whole bill. "
        f"How many dollars does {they} pay?",
        f"the price that {who} pays",
        g,
        (
            Step("bill", "count", "*", "price", f"Without the discount the {item} cost {{}} dollars."),
            Step("off", "percent", "%", "bill", "The discount is {} dollars."),
            Step("pays", "bill", "-", "off", f"So {who} pays {{}} dollars."),
        ),
    )


def _school(rng: random.Random) -> Problem:
    place = rng.choice(("school", "college", "summer camp", "music school"))
    g = {"students": _round(rng, 60, 900, 4), "part": rng.choice(tuple(_FRACTIONS)), "percent": _round(rng, 10, 90, 5)}
    return Problem(
        "school",
        f"A {place} has {g['students']} students. Exactly {_FRACTIONS[g['part']]} of them walk there. Of the others, "
        f"{g['percent']}% come by bus. How many students come by bus?",
        "the number of students who come by bus",
        g,
        (
            Step("walk", "students", "/", "part", "On foot come {} students."),
            Step("others", "students", "-", "walk", "That leaves {} students."),
            Step("bus", "percent", "%", "others", "Of these, {} come by bus."),
        ),
    )


def _sharing(rng: random.Random) -> Problem:
    (a, *_), (b, *_), (c, *_) = rng.sample(_PEOPLE, 3)
    item = rng.choice(("shells", "stamps", "apples", "pine cones", "marbles", "chestnuts"))
    g = {"a": rng.randint(12, 95), "b": rng.randint(12, 95), "c": rng.randint(12, 95), "bags": rng.randint(4, 12)}
    return Problem(
        "sharing",
        f"{a} collects {g['a']} {item}, {b} collects {g['b']} and {c} collects {g['c']}. They put all of them in "
        f"{g['bags']} bags, the same number in each. How many {item} are in a bag?",
        f"the number of {item} in a bag",
        g,
        (
            Step("two", "a", "+", "b", f"{a} and {b} have {{}} {item}."),
            Step("all", "two", "+", "c", f"With those of {c} it is {{}} {item}."),
            Step("bag", "all", "/", "bags", f"Each bag gets {{}} {item}."),
        ),
    )


def _wages(rng: random.Random) -> Problem:
    (who, they, their), job = (
        rng.choice(_PEOPLE),
        rng.choice(("a library", "a bakery", "a garage", "a cinema", "a farm")),
    )
    g = {
        "wage": rng.randint(9, 28),
        "hours": rng.randint(3, 8),
        "days": rng.randint(4, 12),
        "rent": _round(rng, 40, 400, 5),
    }
    return Problem(
        "wages",
        f"{who} works at {job} for {g['wage']} dollars an hour, {g['hours']} hours a day, on {g['days']} days. "
        f"{they.capitalize()} spends {g['rent']} dollars of {their} pay. How many dollars are left?",
        f"the money that {who} has left",
        g,
        (
            Step("a_day", "wage", "*", "hours", f"In a day {who} earns {{}} dollars."),
            Step("pay", "a_day", "*", "days", "On all days together that is {} dollars."),
            Step("left", "pay", "-", "rent", "After spending, {} dollars are left."),
        ),
    )


def _garden(rng: random.Random) -> Problem:
    (who, *_), plant = rng.choice(_PEOPLE), rng.choice(("tomato", "pepper", "melon", "pumpkin", "cucumber"))
    g = {
        "rows": rng.randint(3, 14),
        "each": rng.randint(4, 20),
        "part": rng.choice(tuple(_FRACTIONS)),
        "fruits": rng.randint(3, 12),
    }
    return Problem(
        "garden",
        f"{who} sets {g['rows']} rows of {g['each']} {plant} plants. Frost kills {_FRACTIONS[g['part']]} of the plants. "
        f"Each plant that is left bears {g['fruits']} fruits. How many fruits are there?",
        "the number of fruits",
        g,
        (
            Step("plants", "rows", "*", "each", "At first there are {} plants."),
            Step("dead", "plants", "/", "part", "The frost kills {} of them."),
            Step("alive", "plants", "-", "dead", "That leaves {} plants."),
            Step("crop", "alive", "*", "fruits", "They bear {} fruits."),
        ),
    )


def _tank(rng: random.Random) -> Problem:
    thing = rng.choice(("tank", "pool", "cistern", "pond"))
    g = {
        "volume": _round(rng, 200, 990, 5),
        "start": _round(rng, 20, 180, 5),
        "fill": rng.randint(12, 40),
        "leak": rng.randint(2, 11),
    }
    return Problem(
        "tank",
        f"A {thing} holds {g['volume']} litres, and {g['start']} litres are in it. A pump brings {g['fill']} litres a "
        f"minute, while {g['leak']} litres a minute leak out. After how many minutes is the {thing} full?",
        f"the minutes until the {thing} is full",
        g,
        (
            Step("missing", "volume", "-", "start", f"The {thing} still takes {{}} litres."),
            Step("rate", "fill", "-", "leak", "Every minute it gains {} litres."),
            Step("minutes", "missing", "/", "rate", "So it is full after {} minutes."),
        ),
    )


def _saving(rng: random.Random) -> Problem:
    (who, they, _), thing = rng.choice(_PEOPLE), rng.choice(("bicycle", "guitar", "camera", "tent", "telescope"))
    g = {
        "price": _round(rng, 120, 800, 5),
        "has": _round(rng, 20, 110, 5),
        "earns": rng.randint(20, 60),
        "spends": rng.randint(5, 19),
    }
    return Problem(
        "saving",
        f"A {thing} costs {g['price']} dollars. {who} has {g['has']} dollars. Each week {they} earns {g['earns']} dollars "
        f"and spends {g['spends']}. In how many weeks can {they} buy the {thing}?",
        f"the weeks until {who} can buy the {thing}",
        g,
        (
            Step("missing", "price", "-", "has", f"For the {thing} {who} still needs {{}} dollars."),
            Step("saves", "earns", "-", "spends", f"Each week {who} puts aside {{}} dollars."),
            Step("weeks", "missing", "/", "saves", "This takes {} weeks."),
        ),
    )


def _theatre(rng: random.Random) -> Problem:
    show = rng.choice(("play", "concert", "puppet show", "circus show"))
    g = {
        "adults": rng.randint(15, 60),
        "full": rng.randint(8, 20),
        "children": rng.randint(10, 50),
        "half": rng.randint(3, 7),
        "hall": _round(rng, 100, 600, 10),
    }
    return Problem(
        "theatre",
        f"A {show} is seen by {g['adults']} adults, who pay {g['full']} dollars each, and {g['children']} children, who pay "
        f"{g['half']} dollars each. The hall costs {g['hall']} dollars. How many dollars of profit are made?",
        f"the profit of the {show}",
        g,
        (
            Step("from_adults", "adults", "*", "full", "The adults pay {} dollars."),
            Step("from_children", "children", "*", "half", "The children pay {} dollars."),
            Step("income", "from_adults", "+", "from_children", "The income is {} dollars."),
            Step("profit", "income", "-", "hall", "Without the hall, the profit is {} dollars."),
        ),
    )


def _factory(rng: random.Random) -> Problem:
    item = rng.choice(("bottles", "bolts", "toys", "tiles", "cups"))
    g = {
        "machines": rng.randint(3, 9),
        "rate": rng.randint(10, 60),
        "hours": rng.randint(4, 12),
        "percent": _round(rng, 5, 30, 5),
    }
    return Problem(
        "factory",
        f"In a factory {g['machines']} machines make {g['rate']} {item} an hour each and run for {g['hours']} hours. "
        f"Then {g['percent']}% of the {item} turn out to be faulty. How many good {item} are there?",
        f"the number of good {item}",
        g,
        (
            Step("an_hour", "machines", "*", "rate", f"The machines make {{}} {item} an hour."),
            Step("made", "an_hour", "*", "hours", f"In the whole time they make {{}} {item}."),
            Step("faulty", "percent", "%", "made", "Of these, {} are faulty."),
            Step("good", "made", "-", "faulty", f"So {{}} {item} are good."),
        ),
    )


def _recipe(rng: random.Random) -> Problem:
    (who, they, _), dish = rng.choice(_PEOPLE), rng.choice(("soup", "stew", "curry", "risotto"))
    g = {
        "guests": rng.randint(12, 96),
        "serves": rng.randint(3, 8),
        "cups": rng.randint(3, 11),
        "has": rng.randint(4, 30),
    }
    return Problem(
        "recipe",
        f"A pot of {dish} takes {g['cups']} cups of stock and serves {g['serves']} people. {who} cooks for {g['guests']} "
        f"people and has {g['has']} cups of stock. How many more cups does {they} need?",
        f"the cups of stock that {who} still needs",
        g,
        (
            Step("pots", "guests", "/", "serves", f"For all people {who} cooks {{}} pots."),
            Step("stock", "pots", "*", "cups", "The pots take {} cups of stock."),
            Step("more", "stock", "-", "has", "So {} more cups are needed."),
        ),
    )


def _stickers(rng: random.Random) -> Problem:
    (who, they, their), (friend, *_) = rng.sample(_PEOPLE, 2)
    item = rng.choice(("stickers", "cards", "beads", "postcards"))
    g = {
        "has": rng.randint(24, 240),
        "part": rng.choice(tuple(_FRACTIONS)),
        "packs": rng.randint(3, 9),
        "each": rng.randint(5, 15),
    }
    return Problem(
        "stickers",
        f"{who} has {g['has']} {item} and gives {_FRACTIONS[g['part']]} of {their} {item} to {friend}. Then {they} buys "
        f"{g['packs']} packs of {g['each']} {item}. How many {item} does {who} have now?",
        f"the number of {item} that {who} has in the end",
        g,
        (
            Step("gift", "has", "/", "part", f"{friend} gets {{}} {item}."),
            Step("kept", "has", "-", "gift", f"That leaves {who} {{}} {item}."),
            Step("bought", "packs", "*", "each", f"The packs hold {{}} {item}."),
            Step("now", "kept", "+", "bought", f"Now {who} has {{}} {item}."),
        ),
    )


def _bus(rng: random.Random) -> Problem:
    kind = rng.choice(("buses", "trams", "ferries"))
    g = {
        "seats": rng.randint(20, 60),
        "count": rng.randint(3, 9),
        "percent": _round(rng, 10, 90, 5),
        "late": rng.randint(3, 19),
    }
    return Problem(
        "bus",
        f"A line runs {g['count']} {kind} with {g['seats']} seats each. In the morning {g['percent']}% of all seats are "
        f"taken, and then {g['late']} more people sit down. How many seats are taken now?",
        "the number of seats taken",
        g,
        (
            Step("all", "count", "*", "seats", f"The {kind} have {{}} seats."),
            Step("taken", "percent", "%", "all", "In the morning {} seats are taken."),
            Step("now", "taken", "+", "late", "With the latecomers it is {} seats."),
        ),
    )


TEMPLATES: tuple[Template, ...] = (
    _bakery,
    _change,
    _reading,
    _ages,
    _journey,
    _discount,
    _school,
    _sharing,
    _wages,
    _garden,
    _tank,
    _saving,
    _theatre,
    _factory,
    _recipe,
    _stickers,
    _bus,
)
