"""One registry for methods, datasets, preparations, encoders and fusions, and the only place that imports by path.

    METHODS = Registry("method", __package__)

    @METHODS.register("damped")
    class Damped(Method):
        '''Damped sum of the gradients (a line for --list-methods).

        Args:
            share: of the unimodal gradient.
        '''

        def __init__(self, share: float = 0.5) -> None: ...

Options, their defaults, types and help come from the signature and the docstring (Google's format). An entry may take a
name after a colon, which becomes its first constructor argument: `timm:resnet18`. A class elsewhere is named by its
import path, `package.module:Class`; a registered name that takes an argument wins. Importing a module runs its code: a
path that a person typed may be imported, one that a file names (the settings of a run) only after `require_allowed`.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import docstring_parser

T = TypeVar("T")
Make = TypeVar("Make", bound=Callable[..., Any])
REQUIRED = inspect.Parameter.empty  # the default of an option that has none


class Option(NamedTuple):
    """An option of a registered class: its default (or REQUIRED), its type, a line of help."""

    default: Any
    type: Any
    help: str


@typing.runtime_checkable
class HasOptions(typing.Protocol):
    """A callable object that says itself which options it takes, because they are another library's."""

    def options(self) -> dict[str, Option]:
        """Options by name."""


class Range(NamedTuple):
    """Values of an option that a search draws from: whole numbers where both ends are whole.

    Attributes:
        low: the least value, above 0 where `log`.
        high: the greatest one.
        log: whether the logarithm is uniform, or the value itself.
    """

    low: float
    high: float
    log: bool = True


# option: a range, or the values to choose from
Space = Mapping[str, Range | Sequence[Any]]


@dataclass(frozen=True)
class Entry(Generic[T]):
    """What is registered under a name.

    Attributes:
        name: the name.
        make: the class, or a function that makes an instance.
        summary: one line for tables and help.
        group: heading under which the entry is listed.
        options: of `make`, by name.
        argument: what must follow the name after a colon and does not; "" where nothing is missing.
        search: values of its options from which a search draws.
    """

    name: str
    make: Callable[..., T]
    summary: str
    group: str
    options: Mapping[str, Option]
    argument: str = ""
    search: Space = field(default_factory=dict)

    @property
    def source(self) -> Any:
        """The class or function behind `make`, whose first arguments may be bound."""
        return _source(self.make)


class Registry(Generic[T]):
    """Classes by name.

    Args:
        kind: what is registered, for messages: "method".
        package: package or module that registers entries; it is imported, with all its modules, when the first name
            is looked up.
        skip: constructor arguments that are not options.
        aliases: other names of entries.
        error: exception that is raised for unknown names and options, a ValueError by default.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        *,
        skip: Collection[str] = (),
        aliases: Mapping[str, str] | None = None,
        error: type[Exception] = ValueError,
    ) -> None:
        self.kind, self.error = kind, error
        self.bases: tuple[type, ...] = ()
        self._package, self._skip, self._aliases = package, frozenset(skip), dict(aliases or {})
        self._makers: dict[str, tuple[Callable[..., Any], str, str]] = {}
        self._arguments: dict[str, str] = {}  # names that take one after a colon
        self._spaces: dict[str, Space] = {}
        self._discovered = False

    def base(self, *classes: type) -> None:
        """Set the classes that a class named by its import path must be derived from."""
        self.bases = classes

    def register(
        self, name: str, *, summary: str = "", group: str = "", argument: str = "", search: Space | None = None
    ) -> Callable[[Make], Make]:
        """Register the decorated class, or function that makes an instance, under a name.

        Args:
            name: in lower case.
            summary: one line; by default the first line of the docstring.
            group: heading under which it is listed.
            argument: the first constructor argument, where it is the text after a colon: "model" of `timm:resnet18`.
                The entry stands in a module of its own name.
            search: ranges or values of options from which `experiment.py --search` draws. A class that is named by its
                import path has them in an attribute `search`.

        Raises:
            ValueError: for a name that is taken.
        """

        def add(make: Make) -> Make:
            if name in self._makers:
                raise ValueError(f"the {self.kind} {name!r} is registered twice")
            self._makers[name] = make, summary, group
            self._spaces[name] = search or {}
            if argument:
                self._arguments[name] = argument
            return make

        return add

    def __iter__(self) -> Iterator[str]:
        """Names by group, in alphabetical order."""
        self._discover()
        return iter(sorted(self._makers, key=lambda name: (self._makers[name][2], name)))

    def __contains__(self, name: str) -> bool:
        return self._registered(name) is not None

    def __len__(self) -> int:
        self._discover()
        return len(self._makers)

    def names(self, group: str | None = None) -> list[str]:
        """The registered names, those of one group where it is given."""
        return [name for name in self if group is None or self._makers[name][2] == group]

    def split(self, name: str) -> tuple[str, str] | None:
        """The registered name and the text after the colon; None for a plain name and for an import path."""
        prefix, _, text = name.partition(":")
        known = self._registered(prefix, everywhere=False) if text else None
        return None if known is None or known not in self._arguments else (known, text)

    def is_path(self, name: str) -> bool:
        """Whether a name is an import path."""
        return ":" in name and self.split(name) is None

    def canonical(self, name: str) -> str:
        """The registered name for `name`: aliases and letter case are resolved; an import path stays as it is.

        Raises:
            ValueError: (or the registry's own error) for an unknown name; it names the closest and all known ones.
        """
        if ":" in name:
            return ":".join(self.split(name) or (name,))
        known = self._registered(name)
        if known is not None:
            return known
        close = difflib.get_close_matches(name.lower(), list(self), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise self.error(
            f"unknown {self.kind} {name!r:.100}; {hint}known: {', '.join(self)}, or package.module:Class for one of "
            "your own"
        )

    def __getitem__(self, name: str) -> Entry[T]:
        """The entry of a name, or of a class at `package.module:Class`.

        Raises:
            ValueError: (or the registry's own error) for an unknown name, or a class that cannot be used.
        """
        name = self.canonical(name)
        argument = self._arguments.get(name, "")
        if parts := self.split(name):
            make, summary, group = self._makers[parts[0]]
            make = functools.partial(make, parts[1])
        elif ":" in name:
            try:
                make = class_at(name, *self.bases)
            except ValueError as error:
                raise self.error(f"{self.kind} {error}") from error
            summary, group = "", ""
        else:
            make, summary, group = self._makers[name]
        options = {key: option for key, option in _options(make).items() if key not in self._skip | {argument}}
        search = self._spaces.get(name) or getattr(_source(make), "search", {})
        return Entry(name, make, summary or _summary(make), group, options, argument, search)

    def build(self, name: str, *arguments: Any, **options: Any) -> T:
        """Make an instance.

        Args:
            name: a registered name, an alias or an import path.
            arguments: positional arguments of the constructor.
            options: keyword arguments of the constructor.

        Raises:
            ValueError: (or the registry's own error) for an unknown name or option, or a value that the constructor
                cannot use.
        """
        entry = self[name]
        if entry.argument:
            raise self.error(
                f"the {self.kind} {entry.name} needs the name of a {entry.argument} after a colon: "
                f"{entry.name}:{entry.argument.upper()}"
            )
        self.check_options(entry, [key for key in options if key not in self._skip])
        try:
            return entry.make(*arguments, **options)
        except TypeError as error:  # text where a number is compared, for example
            first = str(error).splitlines()[0][:200]
            raise self.error(f"the {self.kind} {name} cannot use the options {options}: {first}") from error

    def check_options(self, entry: Entry[T], names: Iterable[str]) -> None:
        """Refuse options that an entry does not have.

        Raises:
            ValueError: (or the registry's own error) with the known options.
        """
        for key in names:
            if key not in entry.options:
                known = ", ".join(entry.options) or "none"
                close = difflib.get_close_matches(key, entry.options, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise self.error(f"the {self.kind} {entry.name} has no option {key!r:.100}; {hint}its options: {known}")

    def table(self) -> list[tuple[str, str, str]]:
        """A row (name, options with defaults, summary) for each entry."""
        rows = []
        for name in self:
            entry = self[name]
            options = ", ".join(
                key if option.default is REQUIRED else f"{key}={option.default}"
                for key, option in entry.options.items()
            )
            rows.append((f"{name}:{entry.argument.upper()}" if entry.argument else name, options, entry.summary))
        return rows

    def _registered(self, name: str, everywhere: bool = True) -> str | None:
        """The registered name for `name`; the module of that name is imported before all others.

        Args:
            everywhere: import the other modules too where that module does not register it.
        """
        for alias, target in self._aliases.items():
            if _simple(name) == _simple(alias):
                name = target
        if not self._discovered:
            module = f"{self._package}.{_simple(name)}"
            if name.isidentifier() or name.replace("-", "_").isidentifier():
                with contextlib.suppress(ModuleNotFoundError):
                    importlib.import_module(module)
        for names in (self._makers, self) if everywhere else (self._makers,):  # the second imports all modules
            for known in names:
                if _simple(name) == _simple(known):
                    return known
        return None

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
            importlib.import_module(f"{self._package}.{module.name}")


def _source(make: Callable[..., Any]) -> Any:
    return make.func if isinstance(make, functools.partial) else make


def _simple(name: str) -> str:
    return name.lower().replace("-", "_")


def attribute(path: str) -> Any:
    """What `package.module:name` names.

    Raises:
        ImportError: where there is no such name.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (AttributeError, TypeError, ValueError) as error:  # the last two: `.module` and `:name`
        raise ImportError(str(error)) from error


def class_at(path: str, *expected: type) -> type:
    """The class at `package.module:Class`, a subclass of one of `expected`; it is not called.

    Raises:
        ValueError: where it cannot be imported or is something else, with what to do.
    """
    try:
        value = attribute(path)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path!r} cannot be imported: {error}; name the folder that holds it in the environment variable "
            "PYTHONPATH, as in PYTHONPATH=FOLDER python ..."
        ) from error
    except Exception as error:  # whatever the module's own code raises
        raise ValueError(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(value, type) and issubclass(value, expected)):
        names = " or ".join(f"{kind.__module__.removesuffix('.base')}.{kind.__name__}" for kind in expected)
        raise ValueError(f"{path!r} is no subclass of {names}")
    return value


def require_allowed(paths: Iterable[str], allowed: Collection[str]) -> None:
    """Refuse import paths that a file names and the command line does not allow.

    Args:
        paths: names; those with a colon are import paths.
        allowed: import paths that may be imported.

    Raises:
        ValueError: with the flags that allow them.
    """
    refused = sorted({path for path in paths if ":" in path} - set(allowed))
    if refused:
        flags = " ".join(f"--allow {path}" for path in refused)
        raise ValueError(
            f"imports its own code, {', '.join(refused)}: this runs it; where you trust it, add {flags} and name its "
            "folder in PYTHONPATH"
        )


def _summary(make: Callable[..., Any]) -> str:
    return docstring_parser.parse(inspect.getdoc(_source(make)) or "").short_description or ""


def _options(make: Callable[..., Any]) -> dict[str, Option]:
    """Options of a callable from its signature; an attribute `options()` of a callable object gives its own."""
    if isinstance(make, HasOptions):
        return make.options()
    source = _source(make)
    about = docstring_parser.parse(inspect.getdoc(source) or "").params
    help_texts = {item.arg_name: " ".join((item.description or "").split()) for item in about}
    hints = typing.get_type_hints(source.__init__ if isinstance(source, type) else source)  # type: ignore[misc]
    return {
        key: Option(parameter.default, hints.get(key, str), help_texts.get(key, ""))
        for key, parameter in inspect.signature(make).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
