"""The faults: each is one node of a file's syntax tree and what stands in its place."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATIONS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        file: relative to the checkout.
        place: of the node among all nodes of the file, in the order of `ast.walk`.
        line: where the statement of the node begins.
        before: the node as it is.
        after: what stands in its place; empty for a statement that is left out.
        text: the first line of the node as it stands in the file.
    """

    file: str
    place: int
    line: int
    before: str
    after: str
    text: str

    @property
    def name(self) -> str:
        """What a reason is kept under: it does not change when lines move."""
        return f"{self.file}: `{self.before}` as `{self.after or 'nothing'}` in `{self.text}`"


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """All faults of one file, none in annotations, docstrings, texts and what is read by type checkers only."""
    tree = ast.parse(source)
    skipped = {id(x) for root in _untested(tree) for x in ast.walk(root)}
    lines = _lines_of_statements(tree)
    for place, node in enumerate(ast.walk(tree)):
        if id(node) in skipped:
            continue
        for new in replacements(node):
            after = "" if isinstance(new, ast.Pass) else _one_line(new)
            line = lines[id(node)]
            yield Mutant(file, place, line, _one_line(node), after, source.splitlines()[line - 1].strip())


def applied(mutant: Mutant, source: str) -> ast.Module:
    """The syntax tree of the file with the fault in it. Line numbers are those of the source."""
    tree = ast.parse(source)
    wanted = next(node for place, node in enumerate(ast.walk(tree)) if place == mutant.place)
    choices = [new for new in replacements(wanted) if ("" if isinstance(new, ast.Pass) else _one_line(new)) == mutant.after]
    fault = ast.copy_location(choices[0], wanted)

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return fault if node is wanted else self.generic_visit(node)

    Replace().visit(tree)
    return ast.fix_missing_locations(tree)


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of one node."""
    match node:
        case ast.expr():
            yield from _expressions(node)
        case ast.If(test=test) | ast.While(test=test) if not isinstance(test, ast.Compare | ast.UnaryOp | ast.BoolOp):
            yield _with(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.AugAssign(op=op) if type(op) in OPERATIONS:
            yield _with(node, op=OPERATIONS[type(op)]())
            yield ast.Pass()
        case ast.Raise() | ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield _with(node, value=ast.Constant(None))
        case ast.Continue():
            yield ast.Break()


def _expressions(node: ast.expr) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            yield _with(node, ops=[COMPARISONS[type(op)]()])
        case ast.BinOp(op=op) if type(op) in OPERATIONS and not _is_text(node):
            yield _with(node, op=OPERATIONS[type(op)]())
        case ast.BoolOp(op=op):
            yield _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value if value else 1.0)
        case ast.IfExp():
            yield node.body
            yield node.orelse


def files_of(places: list[Path], root: Path) -> list[str]:
    """The Python files of folders or files, relative to the checkout."""
    found = {file for place in places for file in ([place] if place.is_file() else place.rglob("*.py"))}
    return sorted(str(file.resolve().relative_to(root)) for file in found)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _untested(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef) and node.returns:
            yield node.returns
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield node
        elif isinstance(node, ast.JoinedStr):
            yield node  # the words of messages are tests of their own
        elif isinstance(node, ast.keyword) and node.arg in ("strict", "maxsize", "frozen", "eq"):
            yield node  # of `zip`, of caches and of dataclasses, where nothing changes unless there is another fault
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id[:1].isupper() for t in node.targets):
            yield from (x for x in ast.walk(node.value) if isinstance(x, ast.Subscript | ast.BinOp) and _is_type(x))


def _is_type(node: ast.AST) -> bool:
    return isinstance(node, ast.Subscript) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr))


def _is_text(node: ast.BinOp) -> bool:
    parts = (node.left, node.right)
    return any(isinstance(x, ast.JoinedStr) or (isinstance(x, ast.Constant) and isinstance(x.value, str)) for x in parts)


def _lines_of_statements(tree: ast.Module) -> dict[int, int]:
    """For each node the line on which it is executed: its own, or that of what it stands in."""
    lines: dict[int, int] = {}

    def visit(node: ast.AST, line: int) -> None:
        line = getattr(node, "lineno", line)
        lines[id(node)] = line
        for child in ast.iter_child_nodes(node):
            visit(child, line)

    visit(tree, 1)
    return lines


def _one_line(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 100 else text[:97] + "..."
