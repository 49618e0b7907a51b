"""Compiling many small kernels into few large ones, each byte of machine code once.

numba makes a library of every function: it links what the function calls, optimises the whole and
makes machine code of it, although a function that only other kernels call needs neither. With
functions of ten lines, twelve calls deep, each leaf is optimised and translated a dozen times: the
service took four minutes of CPU to compile. Here a function gets two dispatchers:

    _Entry        called from Python: numba's own, with a cache on disk
    _Ingredient   called from kernels: typed and lowered, then left as it is. Whoever is called
                  from Python links all of them, and is optimised and translated once.

Only numba's own steps are used, in another order (`Dispatcher.compile`, `compile_extra`,
`JITCodeLibrary.finalize`); they are the same in numba 0.61 to 0.68.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core import compiler, sigutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import _FunctionCompiler
from numba.core.registry import CPUDispatcher
from numba.core.types import Dispatcher

_MAKERS = {"empty", "zeros", "borrow", "room"}
"""What kernels make arrays with."""


class _Unfinished(JITCodeLibrary):
    """A library that is only there to be linked: one function, and nothing that it calls."""

    def finalize(self) -> None:
        """Linking is left to the library of the entry, as are optimising and translating."""
        self._raise_if_finalized()
        self._finalize_dynamic_globals()
        self._finalized = True

    @property
    def calls(self) -> list[JITCodeLibrary]:
        """The libraries of what the function calls."""
        found: list[JITCodeLibrary] = self._linking_libraries
        return found


class _Whole(JITCodeLibrary):
    """The library of an entry: links all that it calls, however deep, each function once."""

    def finalize(self) -> None:
        """As numba does it, with everything at hand."""
        self._linking_libraries = _callers_first(self)
        super().finalize()
        assert not self._left_out(), "code that is called and not there would be a jump to nowhere"

    def _left_out(self) -> set[str]:
        """Functions that are called, and lie in a library that was linked, but were not taken in.

        In this process they may be found elsewhere; in one that loads the code from disk, not.
        """
        wanted = {each.name for each in self._final_module.functions if each.is_declaration}
        modules = (library._final_module for library in self._linking_libraries)  # noqa: SLF001
        there = (each for module in modules for each in module.functions)
        return {each.name for each in there if each.name in wanted and not each.is_declaration}


def _callers_first(whole: _Whole) -> list[JITCodeLibrary]:
    """All libraries that `whole` needs, each behind every one that calls it.

    LLVM takes a function in when something there calls it already, and else leaves it out.
    """
    begun: set[JITCodeLibrary] = set()
    done: list[JITCodeLibrary] = []
    waiting = [(library, False) for library in whole._linking_libraries]  # noqa: SLF001
    while waiting:
        library, all_it_calls_is_done = waiting.pop()
        if all_it_calls_is_done:
            done.append(library)
        elif library not in begun:
            begun.add(library)
            waiting.append((library, True))
            if isinstance(library, _Unfinished):
                waiting.extend((each, False) for each in library.calls)
    return done[::-1]


class _EntryCompiler(_FunctionCompiler):
    """Compiles what Python calls, into a library of ours."""

    def _compile_core(self, args: Any, return_type: Any) -> Any:
        flags = compiler.Flags()
        self.targetdescr.options.parse_as_flags(flags, self.targetoptions)
        target = self.targetdescr.target_context
        library = _Whole(target.codegen(), self.py_func.__qualname__)
        library.enable_object_caching()
        return compiler.compile_extra(
            self.targetdescr.typing_context,
            target,
            self.py_func,
            args=args,
            return_type=return_type,
            flags=self._customize_flags(flags),
            locals=self.locals,
            library=library,
            pipeline_class=self.pipeline_class,
        )


class _Ingredient(CPUDispatcher):
    """What kernels see of a kernel."""

    def compile(self, sig: Any) -> Any:
        """Type and lower for the types of `sig`. Returns the key that callers know it by."""
        with global_compiler_lock, self._compiling_counter:
            arguments, return_type = sigutils.normalize_signature(sig)
            known = self.overloads.get(tuple(arguments))
            if known is not None:
                return known.entry_point
            made = self._lower(arguments, return_type)
            made = made._replace(entry_point=object())
            self.targetctx.insert_user_function(made.entry_point, made.fndesc, [made.library])
            self.overloads[tuple(arguments)] = made
            return made.entry_point

    def _lower(self, arguments: Any, return_type: Any) -> Any:
        """Type and lower.

        References are counted only where arrays are made: whoever calls holds those handed over
        until we return, and kernels return none of their own. Counting is a call for each array,
        each time it is handed on, which was a third of the scan.
        """
        flags = compiler.Flags()
        self.targetdescr.options.parse_as_flags(flags, self.targetoptions)
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        flags.nrt = not _MAKERS.isdisjoint(self.py_func.__code__.co_names)
        # Else it is taken over from whoever calls, and all below an inlined kernel is inlined:
        # the rare ways of reading an argument were copied into each place that may lead there,
        # which took minutes and a gigabyte to optimise.
        flags.forceinline = self.targetoptions.get("forceinline", False)
        return compiler.compile_extra(
            self.typingctx,
            self.targetctx,
            self.py_func,
            args=arguments,
            return_type=return_type,
            flags=flags,
            locals=self.locals,
            library=_Unfinished(self.targetctx.codegen(), self.py_func.__qualname__),
        )


class _Entry(CPUDispatcher):
    """What Python sees of a kernel."""

    ingredient: _Ingredient

    @property
    def _numba_type_(self) -> Any:
        return Dispatcher(self.ingredient)


def compiled(function: Callable[..., Any], *, cache: bool, inline: bool) -> Any:
    """A kernel: compiled when it is first called, the GIL released."""
    options: dict[str, Any] = {"nopython": True, "nogil": True, "error_model": "numpy"}
    if inline:
        options["forceinline"] = True
    entry = _Entry(py_func=function, targetoptions=options)
    entry._compiler = _EntryCompiler(  # noqa: SLF001 - numba's own constructor does the same.
        function, entry.targetdescr, options, {}, compiler.Compiler
    )
    entry.ingredient = _Ingredient(py_func=function, targetoptions=dict(options))
    if cache:
        entry.enable_caching()
    return entry
