"""What the modules of a package register, read from their source: to import them, and PyTorch, takes seconds."""

import ast
import contextlib
import functools
import importlib.util
import inspect
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Declaration(NamedTuple):
    """A call of `VARIABLE.register`, and what is registered.

    Attributes:
        module: that has the call.
        name: the registered name.
        arguments: the other arguments of `register`.
        docstring: of the class or function, with its indentation removed.
        parameters: {name: (default, type)} of the constructor or function, `inspect.Parameter.empty` for no default.
        attributes: class attributes that were asked for, where the class has them.
    """

    module: str
    name: str
    arguments: dict[str, Any]
    docstring: str
    parameters: dict[str, tuple[Any, Any]]
    attributes: Mapping[str, Any]


def declarations(
    package: str, variable: str, skip: Collection[str], attributes: Collection[str], names: Mapping[str, Any]
) -> Iterator[Declaration]:
    """Read `@VARIABLE.register(name, ...)` above classes and functions, and `VARIABLE.register(name, ...)(value)`.

    A value is the name of a class or function of the package, or `partial(name, ...)` with its first arguments.

    Args:
        package: whose modules are read; not those of its subpackages.
        variable: that holds the registry.
        skip: parameters to leave out.
        attributes: class attributes to read.
        names: objects that arguments of `register` may use.

    Raises:
        LookupError: for a module that registers in another way: it must be imported.
    """
    for path in sorted(_file(package).parent.glob("*.py")):
        module = package if path.stem == "__init__" else f"{package}.{path.stem}"
        if f"{variable}.register(" not in path.read_text(encoding="utf-8"):
            continue
        calls = sum(_is_register(node, variable) for node in ast.walk(_tree(module)))
        for statement in _tree(module).body:
            for call, node in _registered(statement, variable):
                calls -= 1
                name = ast.literal_eval(call.args[0])
                arguments = {word.arg or "": _value(module, word.value, names) for word in call.keywords}
                bound: list[ast.expr] = []
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "partial":
                    node, *bound = node.args
                where, value = _definition(module, node.id) if isinstance(node, ast.Name) else (module, node)
                if not isinstance(value, ast.ClassDef | ast.FunctionDef):
                    raise LookupError(f"{path} registers {name}, which is no class or function")
                members = {key: _member(where, value, key) for key in attributes if isinstance(value, ast.ClassDef)}
                yield Declaration(
                    module,
                    name,
                    arguments,
                    ast.get_docstring(value) or "",
                    _parameters(where, value, {*skip, arguments.get("argument")}, len(bound)),
                    {key: _value(*member) for key, member in members.items() if member is not None},
                )
        if calls:
            raise LookupError(f"{path} calls {variable}.register within a statement")


def _is_register(node: ast.AST, variable: str) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="register")):
            return name == variable
    return False


def _registered(statement: ast.stmt, variable: str) -> Iterator[tuple[ast.Call, ast.AST]]:
    """The calls of `register` in a statement, and what each of them registers."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        for decorator in statement.decorator_list:
            if isinstance(decorator, ast.Call) and _is_register(decorator, variable):
                yield decorator, statement
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        outer = statement.value
        if isinstance(outer.func, ast.Call) and _is_register(outer.func, variable):
            yield outer.func, outer.args[0]


def _file(module: str) -> Path:
    top, *parts = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(f"{top} is no package")
    path = Path(spec.submodule_search_locations[0], *parts)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def _definition(module: str, name: str) -> tuple[str, ast.AST]:
    """The class, function or value of a name at the top of a module, and the module that defines it."""
    for statement in _tree(module).body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef) and statement.name == name:
            return module, statement
        if isinstance(statement, ast.ImportFrom) and statement.module:
            for alias in statement.names:
                same_package = statement.module.partition(".")[0] == module.partition(".")[0]
                if (alias.asname or alias.name) == name and same_package:
                    return _definition(statement.module, alias.name)
        if (value := _assigned(statement, name)) is not None:
            return module, value
    raise LookupError(f"{module} does not define {name}")


def _assigned(statement: ast.stmt, name: str) -> ast.expr | None:
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    is_name = any(isinstance(target, ast.Name) and target.id == name for target in targets)
    return statement.value if is_name and isinstance(statement, ast.Assign | ast.AnnAssign) else None


def _member(module: str, owner: ast.ClassDef, name: str) -> tuple[str, ast.AST] | None:
    """A method or the value of an attribute of a class or its nearest base, and the module that defines it."""
    classes = [(module, owner)]
    for where, current in classes:
        for statement in current.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == name:
                return where, statement
            if (value := _assigned(statement, name)) is not None:
                return where, value
        for base in current.bases:
            with contextlib.suppress(LookupError):  # a class of a library
                parent_module, parent = _definition(where, ast.unparse(base))
                if isinstance(parent, ast.ClassDef):
                    classes.append((parent_module, parent))
    return None


def _parameters(
    module: str, owner: ast.ClassDef | ast.FunctionDef, skip: Collection[str | None], bound: int
) -> dict[str, tuple[Any, Any]]:
    member = (module, owner) if isinstance(owner, ast.FunctionDef) else _member(module, owner, "__init__")
    if member is None:
        return {}
    where, function = member
    assert isinstance(function, ast.FunctionDef), f"the constructor of {owner.name} is no function"
    signature = function.args
    positional = [*signature.posonlyargs, *signature.args]
    defaults = [None] * (len(positional) - len(signature.defaults)) + signature.defaults + signature.kw_defaults
    first = bound + isinstance(owner, ast.ClassDef)  # without `self`
    return {
        parameter.arg: (
            inspect.Parameter.empty if default is None else _value(where, default),
            str if parameter.annotation is None else _value(where, parameter.annotation),
        )
        for parameter, default in zip([*positional, *signature.kwonlyargs][first:], defaults[first:], strict=True)
        if parameter.arg not in skip
    }


class _Names(dict[str, Any]):
    """Values at the top of a module, by name."""

    def __init__(self, module: str, names: Mapping[str, Any]) -> None:
        super().__init__(names)
        self.module = module

    def __missing__(self, name: str) -> Any:
        try:
            return _value(*_definition(self.module, name))
        except LookupError:
            raise KeyError(name) from None  # looked up among the names of `typing` and the built-in ones


def _value(module: str, node: ast.AST, names: Mapping[str, Any] | None = None) -> Any:
    """The value of an expression: of constants, types, and what the package's modules make of them."""
    if not isinstance(node, ast.expr):
        raise LookupError(f"{module}: {ast.unparse(node):.100} is no value")
    code = compile(ast.Expression(node), module, "eval")
    try:
        return eval(code, dict(vars(typing)), _Names(module, names or {}))
    except NameError as error:
        raise LookupError(f"{module}: {error}") from error
