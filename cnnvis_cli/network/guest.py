"""Your own code as a guest: run where it finds what it needs, and leaving all as it was."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.registry import remedy

Kept = tuple[Callable[[], Any], Callable[[Any], Any]]


def _put(place: Any, name: str) -> Kept:
    return (lambda: getattr(place, name)), (lambda value: setattr(place, name, value))


def _set_default_device(device: torch.device) -> None:
    """Set torch's default device; the processor by none at all, which leaves nothing in the way."""
    torch.set_default_device(None if device.type == "cpu" else device)


def usual_precision() -> None:
    """Give torch's convolutions the precision that a new process has.

    Another than that of its recurrent layers, which cnnvis sets, stops torch.export and others.
    """
    cudnn: Any = torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision


def _precisions() -> Iterator[Kept]:
    """Yield torch's settings of how exactly it multiplies, by their newer names or their older."""
    cuda: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if hasattr(cuda, "fp32_precision"):
        onednn: Any = torch.backends.mkldnn
        parts = (cuda, cudnn.conv, cudnn.rnn, onednn.matmul, onednn.conv, onednn.rnn)
        yield from (_put(part, "fp32_precision") for part in parts)
    else:
        yield from (_put(part, "allow_tf32") for part in (cuda, cudnn))
        yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision


_KEPT: tuple[Kept, ...] = (  # what code may change for the whole process: how to read and set it
    _put(sys, "argv"),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, _set_default_device),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    _put(torch.backends.cudnn, "benchmark"),
    _put(torch.backends.cudnn, "deterministic"),
    *_precisions(),
)


class Guest:
    """Code named ``package.module:function`` or ``file.py:function``.

    It is looked for in the current folder, or the file's, and among installed packages. While it
    works, that folder can be imported from; working folder, arguments, default type, gradients and
    the like are put back afterwards, and what it prints goes to stderr.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        place, _, self.attribute = name.partition(":")
        path = Path(place)
        is_file = path.suffix == ".py"
        self.module = path.stem if is_file else place
        self.folder = path.resolve().parent if is_file else Path.cwd()
        self.file = path.resolve() if is_file else None
        self.standing = Path.cwd()  # where it left itself

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Run its code in this block; raise `UsageError` with file and line for what it raises."""
        with self.surroundings():
            try:
                yield
            except (CnnvisError, MemoryError, torch.OutOfMemoryError):
                raise
            except (Exception, SystemExit) as error:
                raise UsageError(f"--model {self.name}: {told(error)}") from error

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """Let its code find its folder in this block, and put back what it changes."""
        here, folder = Path.cwd(), str(self.folder)
        before = [(put, get()) for get, put in _KEPT]
        sys.path.insert(0, folder)
        sys.argv = [str(self.file or self.module)]
        usual_precision()
        os.chdir(self.standing)
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            self.standing = _cwd() or here
            os.chdir(here)
            if folder in sys.path:
                sys.path.remove(folder)
            for (get, _), (put, value) in zip(_KEPT, before, strict=True):
                if get() != value:
                    put(value)

    def find(self) -> Any:
        """Import the module and return what the name says; raise `UsageError` if it cannot be."""
        if not (self.module and self.attribute):
            raise UsageError(
                f"--model {self.name}: cannot import it; write package.module:function, or "
                "file.py:function"
            )
        if self.file is not None and not self.file.is_file():
            raise UsageError(f"--model {self.name}: cannot import it: there is no {self.file}")
        found: Any = self._import()
        for part in self.attribute.split("."):
            if not hasattr(found, part):
                raise UsageError(
                    f"--model {self.name}: cannot import it: {self.module} has no {part}; "
                    f"{remedy(part, _buildable(found))}"
                )
            found = getattr(found, part)
        return found

    def _import(self) -> ModuleType:
        said = StringIO()  # a command line that is parsed on import prints how it is used
        with self.at_work(), ExitStack() as stack:
            stack.enter_context(redirect_stderr(said))
            try:
                found = importlib.import_module(self.module)
            except ModuleNotFoundError as error:
                if error.name and f"{self.module}.".startswith(f"{error.name}."):
                    raise UsageError(
                        f"--model {self.name}: cannot import it: there is no module {error.name} "
                        f"in {self.folder} or among installed packages"
                    ) from None
                raise
        print(said.getvalue(), end="", file=sys.stderr)
        self._refuse_another(found)
        return found

    def _refuse_another(self, found: ModuleType) -> None:
        """Raise `UsageError` for a module of the same name from elsewhere."""
        inside = self.folder.joinpath(*self.module.split("."))
        wanted = self.file or inside.with_suffix(".py")
        where = getattr(found, "__file__", None)
        if wanted.is_file() and (where is None or Path(where).resolve() != wanted.resolve()):
            raise UsageError(
                f"--model {self.name}: {wanted.name} has the name of a module that is loaded "
                f"already ({where or 'part of Python'}); rename it"
            )

    def build(self) -> Any:
        """Return the network: what the name says, or what that returns when it is called."""
        found = self.find()
        if isinstance(found, nn.Module):
            with self.at_work():
                return _copied(found)
        if not callable(found):
            return found
        if missing := needed(found):
            raise UsageError(
                f"--model {self.name}: needs {', '.join(missing)}; write a function without "
                f"arguments that calls {self.attribute} with them, and name that"
            )
        with self.at_work():
            return found()


def _copied(module: nn.Module) -> nn.Module:
    """Return a copy of an object that others may use; the object itself if it has no copies."""
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError, NotImplementedError):
        return module


def needed(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's arguments that have no default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built in
        return []
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]


def _buildable(module: Any) -> list[str]:
    """Return the names of a module's own functions, classes and networks."""
    own = getattr(module, "__name__", None)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (isinstance(value, nn.Module) or getattr(value, "__module__", None) == own)
    ]


def functions_of(path: Path) -> list[str]:
    """Return the names of a file's functions that can be called without arguments, unread else."""
    try:
        parsed = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return []
    return [
        node.name
        for node in parsed.body
        if isinstance(node, ast.FunctionDef) and len(node.args.args) == len(node.args.defaults)
    ]


def told(error: BaseException) -> str:
    """Return what your code raised, with file and line, in one line."""
    text = (str(error) or "no message").splitlines()[0]
    place = _place(error)
    where = f" ({place})" if place else ""
    if isinstance(error, SystemExit):
        return (
            f"your code: it ends the program{where}; put its command line under "
            'if __name__ == "__main__"'
        )
    return f"your code: {type(error).__name__}: {text}{where}"


def _place(error: BaseException) -> str:
    """Return file and line of the last of your lines that led to an error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    ours = str(Path(__file__).parent.parent)
    libraries = [str(Path(torch.__file__).parent.parent), *map(sysconfig.get_path, _LIBRARIES)]
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not f.filename.startswith((ours, "<frozen", *libraries))]
    return f"{Path(outside[-1].filename).name}, line {outside[-1].lineno}" if outside else ""


_LIBRARIES = ("stdlib", "platstdlib", "purelib", "platlib")


def _cwd() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None
