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

Names, options and help are read from the source (see `declared`) where no module was imported yet: command lines are
parsed, and refused, without PyTorch. The variable that holds a registry is called as its kind, `METHODS`.
"""

import difflib
import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeVar

import docstring_parser

from mmpareto.declared import declarations

T = TypeVar("T")
Make = TypeVar("Make", bound=Callable[..., Any])
REQUIRED = inspect.Parameter.empty  # the default of an option that has none


class Option(NamedTuple):
    """An option of a registered class: its default (or REQUIRED), its type, a line of help."""

    default: Any
    type: Any
    help: str


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
        summary: one line for tables and help.
        group: heading under which the entry is listed.
        options: of `make`, by name.
        argument: what must follow the name after a colon and does not; "" where nothing is missing.
        search: values of its options from which a search draws.
        attributes: those of the class that the registry names, where it has them.
        get: gives `make`; imports its module where necessary.
    """

    name: str
    summary: str
    group: str
    options: Mapping[str, Option]
    argument: str = ""
    search: Space = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    get: Callable[[], Callable[..., T]] | None = None

    @property
    def make(self) -> Callable[..., T]:
        """The class, or a function that makes an instance."""
        assert self.get is not None
        return self.get()

    @property
    def source(self) -> Any:
        """The class or function behind `make`, whose first arguments may be bound."""
        return _source(self.make)


class _Registration(NamedTuple):
    """What is decorated, and the arguments of `Registry.register`."""

    make: Any
    summary: str = ""
    group: str = ""
    argument: str = ""
    search: Space | None = None


class Registry(Generic[T]):
    """Classes by name.

    Args:
        kind: what is registered, for messages: "method".
        package: package or module that registers entries; it is imported, with all its modules, when a class is asked
            for, or a name where a module registers in a way that `declared` does not read.
        bases: import paths of the classes from one of which a class elsewhere must be derived.
        skip: constructor arguments that are not options.
        attributes: class attributes that entries show.
        aliases: other names of entries.
        error: exception that is raised for unknown names and options, a ValueError by default.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        *,
        bases: Collection[str] = (),
        skip: Collection[str] = (),
        attributes: Collection[str] = (),
        aliases: Mapping[str, str] | None = None,
        error: type[Exception] = ValueError,
    ) -> None:
        self.kind, self.error = kind, error
        self.bases = tuple(bases)
        self._package, self._skip, self._aliases = package, frozenset(skip), dict(aliases or {})
        self._attributes = tuple(attributes)
        self._registrations: dict[str, _Registration] = {}
        self._modules: dict[str, str] = {}  # that register, by name, where declarations can be read
        self._discovered = False

    def register(
        self, name: str, *, summary: str = "", group: str = "", argument: str = "", search: Space | None = None
    ) -> Callable[[Make], Make]:
        """Register the decorated class, or function that makes an instance, under a name.

        Args:
            name: in lower case.
            summary: one line; by default the first line of the docstring.
            group: heading under which it is listed.
            argument: the first constructor argument, where it is the text after a colon: "model" of `timm:resnet18`.
            search: ranges or values of options from which `experiment.py --search` draws. A class that is named by its
                import path has them in an attribute `search`.

        Raises:
            ValueError: for a name that is taken.
        """

        def add(make: Make) -> Make:
            if name in self._registrations:
                raise ValueError(f"the {self.kind} {name!r} is registered twice")
            self._registrations[name] = _Registration(make, summary, group, argument, search)
            return make

        return add

    def __iter__(self) -> Iterator[str]:
        """Names by group, in alphabetical order."""
        known = self._known()
        return iter(sorted(known, key=lambda name: (known[name].group, name)))

    def __contains__(self, name: str) -> bool:
        return self._registered(name) is not None

    def __len__(self) -> int:
        return len(self._known())

    def names(self, group: str | None = None) -> list[str]:
        """The registered names, those of one group where it is given."""
        return [name for name in self if group is None or self._known()[name].group == group]

    def split(self, name: str) -> tuple[str, str] | None:
        """The registered name and the text after the colon; None for a plain name and for an import path."""
        prefix, _, text = name.partition(":")
        known = self._registered(prefix) if text else None
        return None if known is None or not self._known()[known].argument else (known, text)

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

    def name_of(self, part: object) -> str:
        """The registered name of an object's class; `package.module:Class` where it has none."""
        kind = type(part)
        return next((name for name in self if self[name].source is kind), f"{kind.__module__}:{kind.__qualname__}")

    def __getitem__(self, name: str) -> Entry[T]:
        """The entry of a name, or of a class at `package.module:Class`.

        Raises:
            ValueError: (or the registry's own error) for an unknown name, or a class that cannot be used.
        """
        name = self.canonical(name)
        if parts := self.split(name):
            whole = self._imported(parts[0])
            bound = functools.partial(whole.make, parts[1])
            return self._described(name, _Registration(bound, whole.summary, whole.group))
        if ":" in name:
            try:
                return self._described(name, _Registration(class_at(name, *map(attribute, self.bases))))
            except ValueError as error:
                raise self.error(f"{self.kind} {error}") from error
        known = self._known()[name]
        if isinstance(known, Entry):
            return replace(known, get=lambda: self._imported(name).make)
        return self._described(name, self._imported(name))

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

    def _registered(self, name: str) -> str | None:
        """The registered name for `name`."""
        for alias, target in self._aliases.items():
            if _simple(name) == _simple(alias):
                name = target
        return next((known for known in self._known() if _simple(name) == _simple(known)), None)

    @functools.cached_property
    def _declared(self) -> dict[str, Entry[T]]:
        """What the sources register, by name; empty where they cannot be read."""
        known: dict[str, Entry[T]] = {}
        variable, names = f"{self.kind.upper()}S", {"Range": Range}
        try:
            for item in declarations(self._package, variable, self._skip, self._attributes, names):
                self._modules[item.name] = item.module
                registration = _Registration(None, **item.arguments)
                summary, texts = _documented(item.docstring)
                known[item.name] = Entry(
                    item.name,
                    registration.summary or summary,
                    registration.group,
                    {key: Option(*parameter, texts.get(key, "")) for key, parameter in item.parameters.items()},
                    registration.argument,
                    registration.search or {},
                    item.attributes,
                )
        except LookupError:
            return {}
        return known

    def _known(self) -> dict[str, Entry[T] | _Registration]:
        """What is registered or declared, by name; all modules are imported where declarations cannot be read."""
        if not self._declared:
            self._discover()
        return self._declared | self._registrations

    def _described(self, name: str, registration: _Registration) -> Entry[T]:
        make, summary, group, argument, search = registration
        source = _source(make)
        return Entry(
            name,
            summary or _documented(inspect.getdoc(source) or "")[0],
            group,
            {key: option for key, option in _options(make).items() if key not in self._skip | {argument}},
            argument,
            search or getattr(source, "search", {}),
            {key: getattr(source, key) for key in self._attributes if hasattr(source, key)},
            lambda: make,
        )

    def _imported(self, name: str) -> _Registration:
        """What is registered under a name that is known; its module is imported."""
        if name not in self._registrations:
            importlib.import_module(self._modules[name])
        return self._registrations[name]

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


def _documented(docstring: str) -> tuple[str, dict[str, str]]:
    """The first line of a docstring, and the text on each argument."""
    about = docstring_parser.parse(docstring)
    texts = {item.arg_name: " ".join((item.description or "").split()) for item in about.params}
    return about.short_description or "", texts


def _options(make: Callable[..., Any]) -> dict[str, Option]:
    """Options of a callable from its signature and docstring."""
    source = _source(make)
    _, texts = _documented(inspect.getdoc(source) or "")
    hints = typing.get_type_hints(source.__init__ if isinstance(source, type) else source)  # type: ignore[misc]
    return {
        key: Option(parameter.default, hints.get(key, str), texts.get(key, ""))
        for key, parameter in inspect.signature(make).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
