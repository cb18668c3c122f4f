"""How much memory a compiled program reads and writes, from its text."""

import re

# What changes each element by itself: of a slice of its result only that slice is computed.
ELEMENTWISE = frozenset(
    [
        "convert",
        "multiply",
        "divide",
        "add",
        "subtract",
        "select",
        "compare",
        "clamp",
        "and",
        "or",
        "not",
        "is-finite",
        "maximum",
        "minimum",
        "negate",
    ]
)
SIZES = {"bf16": 2, "f32": 4, "pred": 1, "s32": 4, "u32": 4, "f16": 2, "s8": 1, "u8": 1, "f64": 8}


def traffic(text: str) -> float:
    """Bytes that the instructions of the entry computation read and write; of what is only sliced, the slices."""
    computations = _computations(text)
    shapes, total = {}, 0.0
    for name, shape, kind, operands, called in computations["ENTRY"]:
        shapes[name] = sum(map(_bytes, re.findall(r"(\w+)\[([\d,]*)\]", shape)))
        if kind not in ("parameter", "get-tuple-element", "tuple", "bitcast", "constant"):
            inside = computations.get(called or "", [])
            sliced = _sliced(inside) if kind == "fusion" else {}
            read = [sliced.get(i, shapes.get(one, 0)) for i, one in enumerate(operands)]
            total += shapes[name] + (shapes[name] if kind == "slice" else sum(read))
    return total


def _computations(text: str) -> dict[str, list]:
    """(name, shape, kind, operands, called computation) of every instruction, by computation."""
    found: dict[str, list] = {}
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if line.endswith("{") and (start := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            lines = found.setdefault("ENTRY" if start[1] else start[2], [])
        match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)", line)
        if match is not None:
            name, shape, kind, operands = match.groups()
            called = re.search(r"calls=%?([\w.\-]+)", line)
            operands = re.findall(r"%([\w.\-]+)", operands) if kind != "parameter" else operands
            lines.append((name, shape, kind, operands, called and called[1]))
    return found


def _sliced(instructions: list) -> dict[int, float]:
    """Bytes that a fusion reads of those operands of which it takes parts alone, maybe after elementwise operations.

    They count in the operand's type, whatever it was converted to before the slice.
    """

    def slices(name: str) -> list[str] | None:
        shapes = []
        for user, shape, kind, operands, _ in instructions:
            if kind == "parameter" or name not in operands:
                continue
            cut = kind == "slice" or (kind == "gather" and operands[0] == name)
            more = [shape] if cut else slices(user) if kind in ELEMENTWISE else None
            if more is None:
                return None
            shapes += more
        return shapes

    found = {}
    for name, own, kind, number, _ in instructions:
        if kind == "parameter" and (shapes := slices(name)):
            lengths = [re.findall(r"\w+\[([\d,]*)\]", shape)[0] for shape in shapes]
            found[int(number)] = sum(_bytes((own.split("[")[0], one)) for one in lengths)
    return found


def _bytes(shape: tuple[str, str]) -> float:
    kind, lengths = shape
    size = SIZES.get(kind, 0)
    for length in filter(None, lengths.split(",")):
        size *= int(length)
    return size
