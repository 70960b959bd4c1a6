"""The partition algorithms once more, sequential and plain, to hold the product against: no code is shared with it.

Exact fractions for real sides, lists of coordinates for finite ones, every leaf looked at in every step. What a
constraint forbids costs nothing: it has the lowest value so far, and comes after those that have a value.
"""

from __future__ import annotations

import math
from fractions import Fraction


def soo(space, f, n, K, eligibility, strict, h_max=None, resolution=1e-4, screen=None):
    """Configurations that SOO evaluates, in order: n of them, or all there are.

    With `screen` it is BaMSOO: ``screen(configuration, evaluated, N)`` gives L and U by a model of the evaluated
    (configuration, value) pairs, or None where there is no model.
    """
    asked, values, bounds, screened, doubtful = [], {}, {}, [0], []

    class EnoughError(Exception):
        pass

    def evaluate(configuration):
        if len(asked) == n:
            raise EnoughError
        asked.append(configuration)
        values[tuple(configuration.items())] = f(configuration)
        doubtful.clear()

    def score(box):
        configuration = space.decode(centre(space, box))
        name = tuple(configuration.items())
        if name not in values and space.allows(configuration):
            screened[0] += 1
            known = screen and screen(configuration, [(c, values[tuple(c.items())]) for c in asked], screened[0])
            if known and known[1] < max(values.values()):
                bounds[name] = known[0]
                doubtful.append((known[1], configuration))
            else:
                evaluate(configuration)
        if len(doubtful) == 8 * K:
            evaluate(max(doubtful, key=lambda entry: entry[0])[1])
        return name

    def rank(leaf):
        return values.get(leaf["name"], bounds.get(leaf["name"], -math.inf))

    def g(leaf):
        return min(values.values(), default=None) if rank(leaf) == -math.inf else rank(leaf)

    def openable(leaf):
        return bool(sides_to_cut(space, leaf["box"], resolution))

    def best_of(depth, sweep):
        some = [leaf for leaf in leaves if leaf["depth"] == depth and openable(leaf)]
        if eligibility == "next_sweep":
            some = [leaf for leaf in some if leaf["sweep"] < sweep]
        return max(some, key=rank, default=None)

    def divide(leaf, sweep):
        leaves.remove(leaf)
        axis = sides_to_cut(space, leaf["box"], resolution)[0]
        for part in parts(space, leaf["box"], axis, K):
            leaves.append({"box": part, "depth": leaf["depth"] + 1, "name": score(part), "sweep": sweep})

    whole = [whole_side(parameter) for _, parameter in space]
    try:
        leaves = [{"box": whole, "depth": 0, "name": score(whole), "sweep": -1}]
        sweep = 0
        while any(openable(leaf) for leaf in leaves):
            nu, h, opened = -math.inf, 0, False
            at_start = max(leaf["depth"] for leaf in leaves)
            while h <= (at_start if eligibility == "frozen" else max(leaf["depth"] for leaf in leaves)):
                if h_max == "sqrt" and h > math.ceil(math.sqrt(len(asked))):
                    break
                if isinstance(h_max, int) and h > h_max:
                    break
                leaf = best_of(h, sweep)
                if leaf is not None and g(leaf) is not None and (g(leaf) > nu or (g(leaf) == nu and not strict)):
                    nu, opened = g(leaf), True
                    divide(leaf, sweep)
                h += 1
            if not opened and not any(leaf["sweep"] == sweep - 1 for leaf in leaves if eligibility == "next_sweep"):
                rest = [leaf for leaf in leaves if openable(leaf)]
                shallow = [leaf for leaf in rest if leaf["depth"] == min(other["depth"] for other in rest)]
                divide(max(shallow, key=rank), sweep)
            sweep += 1
        while rest := [name for name in bounds if name not in values]:
            top = max(bounds[name] for name in rest)
            name = next(name for name in rest if bounds[name] == top)
            evaluate(dict(name))
    except EnoughError:
        pass
    return asked


def coordinates(parameter):
    """Canonical coordinates of a finite parameter's values, in order."""
    if hasattr(parameter, "choices"):
        return [parameter.encode(value) for value in parameter.choices]
    step = parameter.step or 1
    count = round((parameter.high - parameter.low) / step) + 1
    return [parameter.encode(parameter.low + i * step) for i in range(count)]


def whole_side(parameter):
    """(low, high) of a real parameter, the list of all coordinates of a finite one."""
    return (Fraction(0), Fraction(1)) if parameter.cardinality is None else coordinates(parameter)


def edges_of(parameter, side):
    """Where a finite side begins and ends: halfway to the values outside."""
    every = coordinates(parameter)
    first, last = every.index(side[0]), every.index(side[-1])
    low = 0.0 if first == 0 else (every[first - 1] + every[first]) / 2
    high = 1.0 if last == len(every) - 1 else (every[last] + every[last + 1]) / 2
    return low, high


def centre(space, box):
    """Point of the unit cube in the middle of a box."""
    point = []
    for (_, parameter), side in zip(space, box, strict=True):
        if parameter.cardinality is None:
            point.append(float((side[0] + side[1]) / 2))
        else:
            middle = sum(edges_of(parameter, side)) / 2
            nearest = min(abs(u - middle) for u in side)
            point.append(min(u for u in side if abs(u - middle) <= nearest + 1e-9))
    return point


def share(parameter, side):
    """Width of a side, to be compared with others."""
    if parameter.cardinality is None:
        return float(side[1] - side[0])
    every = coordinates(parameter)
    return (side[-1] - side[0]) / (every[-1] - every[0]) if len(every) > 1 else 0.0


def inactive(space, box, axis):
    """Whether the parameter of an axis is inactive everywhere in a box."""
    return named_inactive(space, box, space.axes[axis])


def named_inactive(space, box, name):
    for parent, values in space.parameters[name].conditions.items():
        if named_inactive(space, box, parent):
            return True
        if parent not in space.axes:  # fixed
            if space.parameters[parent].decode(0.5) not in values:
                return True
        elif not any(space.parameters[parent].encode(v) in box[space.axes.index(parent)] for v in values):
            return True
    return False


def sides_to_cut(space, box, resolution):
    """Axes of the longest sides among those that can be cut."""
    able = {}
    for axis, ((_, parameter), side) in enumerate(zip(space, box, strict=True)):
        width = share(parameter, side)
        if inactive(space, box, axis):
            continue
        if (width >= resolution) if parameter.cardinality is None else (len(side) > 1):
            able[axis] = width
    return [axis for axis, width in able.items() if width == max(able.values())]


def parts(space, box, axis, K):
    """The boxes that a cut into K makes."""
    parameter = list(space)[axis][1]
    side = box[axis]
    if parameter.cardinality is None:
        step = (side[1] - side[0]) / K
        cut = [(side[0] + i * step, side[0] + (i + 1) * step) for i in range(K)]
    elif hasattr(parameter, "choices") and not parameter.ordered:
        cut = [[u] for u in side]
    else:
        low, high = edges_of(parameter, side)
        number = [math.floor(K * (u - low) / (high - low) + K * 1e-9 / (high - low)) for u in side]
        cut = [[u for u, i in zip(side, number, strict=True) if i == part] for part in range(K)]
    return [[*box[:axis], part, *box[axis + 1 :]] for part in cut if part]


def direct(space, f, n, locally_biased, epsilon=1e-4, resolution=1e-4):
    """Configurations that DIRECT or DIRECT-L evaluates, in order: n of them, or all there are."""
    asked, values = [], {}

    class EnoughError(Exception):
        pass

    def sample(point):
        configuration = space.decode([float(u) for u in point])
        name = tuple(configuration.items())
        if name not in values and space.allows(configuration):
            if len(asked) == n:
                raise EnoughError
            asked.append(configuration)
            values[name] = Fraction(-f(configuration))
        return name

    def phi(name):
        return values[name] if name in values else max(values.values(), default=math.inf)

    def size(box):
        widths = [
            0.0 if inactive(space, box, axis) else share(p, side)
            for axis, ((_, p), side) in enumerate(zip(space, box, strict=True))
        ]
        return max(widths) / 2 if locally_biased else math.sqrt(math.fsum(w**2 for w in widths)) / 2

    def optimal(j, least):
        """By definition: a kappa that is better than every other box, for some kappa among those where it could be."""
        lowest, size, mine = min(values.values()), j["size"], phi(j["name"])
        slopes = {(y - mine) / (other - size) for other, y in least.items() if other != size} | {Fraction(10) ** 40}
        for kappa in slopes:
            bound = mine - kappa * size
            best = all(bound <= y - kappa * other for other, y in least.items())
            if kappa > 0 and best and bound <= lowest - Fraction(epsilon) * abs(lowest):
                return True
        return False

    def part_with(parameter, side, u):
        return side[0] <= u < side[1] if parameter.cardinality is None else u in side

    whole = [whole_side(parameter) for _, parameter in space]
    middle = centre(space, whole)
    try:
        boxes = [{"box": whole, "at": middle, "name": sample(middle), "size": Fraction(size(whole))}]
        while True:
            able = [b for b in boxes if sides_to_cut(space, b["box"], resolution)]
            known = {b["size"] for b in able if b["name"] in values}
            able = [b for b in able if b["name"] in values or b["size"] not in known]
            least = {}
            for b in able:
                least[b["size"]] = min(phi(b["name"]), least.get(b["size"], math.inf))
            first = [b for b in able if phi(b["name"]) == least[b["size"]]]
            chosen = [b for b in first if optimal(b, least)] if values else []
            if not values:  # a whole space without an allowed centre so far
                chosen = [b for b in able if b["size"] == max(other["size"] for other in able)][:1]
            if locally_biased:
                chosen = [b for i, b in enumerate(chosen) if b["size"] not in [c["size"] for c in chosen[:i]]]
            if not chosen:
                return asked
            plans = []
            for b in sorted(chosen, key=lambda b: b["size"]):
                samples = {}
                for q in sides_to_cut(space, b["box"], resolution):
                    parameter = list(space.parameters.values())[q]
                    samples[q] = []
                    for part in parts(space, b["box"], q, 3):
                        at = list(b["at"])
                        if not part_with(parameter, part[q], b["at"][q]):
                            at[q] = centre(space, part)[q]
                        samples[q].append((part[q], at, None if at == b["at"] else sample(at)))
                plans.append((b, samples))
            for b, samples in plans:
                boxes.remove(b)
                rest = list(b["box"])
                for q in sorted(samples, key=lambda q: min(phi(name) for *_, name in samples[q] if name is not None)):
                    for side, at, name in samples[q]:
                        if name is not None:
                            box = [*rest[:q], side, *rest[q + 1 :]]
                            boxes.append({"box": box, "at": at, "name": name, "size": Fraction(size(box))})
                    rest[q] = next(side for side, _, name in samples[q] if name is None)
                boxes.append({**b, "box": rest, "size": Fraction(size(rest))})
    except EnoughError:
        return asked


def fda(space, f, n, levels, points=1, inflation=1.75, reduction=0.5, precision=0.005):
    """Configurations that FDA evaluates, in order, until `n` or until every sphere is done."""
    asked, values, d = [], {}, space.dim

    class EnoughError(Exception):
        pass

    def sample(point):
        configuration = space.decode(point)
        name = tuple(round(float(u), 6) for u in space.encode(configuration))  # steps back end beside where they began
        if name not in values and space.allows(configuration):
            if len(asked) == n:
                raise EnoughError
            asked.append(configuration)
            values[name] = f(configuration)
        return name

    def value(name):
        return values[name] if name in values else min(values.values(), default=-math.inf)

    def clipped(point):
        return [min(max(u, 0.0), 1.0) for u in point]

    def explore(c, r):
        rho = inflation * r / math.sqrt(d)
        some = [c] if points == 1 else [c, [u + rho for u in c], [u - rho for u in c]]
        return [(sample(clipped(point)), clipped(point)) for point in some]

    def descend(c, r, level):
        if level == levels:
            return local(*max(seen[tuple(c), r], key=lambda entry: value(entry[0])), r)
        below = []
        smaller = r / (1 + math.sqrt(2))
        for q in range(d):
            for sign in (-1, 1):
                child = clipped([u + (sign * (r - smaller) if i == q else 0.0) for i, u in enumerate(c)])
                seen[tuple(child), smaller] = explore(child, smaller)
                below.append(child)
        while below:
            child = max(below, key=lambda child: max(value(name) for name, _ in seen[tuple(child), smaller]))
            below.remove(child)
            descend(child, smaller, level + 1)
        return None

    def local(best, x, step):
        while step >= precision:
            before = best
            for q in range(d):
                tries = [clipped([u + (sign * step if i == q else 0.0) for i, u in enumerate(x)]) for sign in (-1, 1)]
                found = [(sample(point), point) for point in tries]
                top = max(found, key=lambda entry: value(entry[0]))
                if value(top[0]) > value(best):
                    best, x = top
            if best == before:
                step *= reduction

    seen = {}
    try:
        middle = [0.5] * d
        seen[tuple(middle), 0.5] = explore(middle, 0.5)
        descend(middle, 0.5, 0)
    except EnoughError:
        pass
    return asked
