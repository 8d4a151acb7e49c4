"""docs/errors.md: every class of error has a section, and every message leads to one."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch._dynamo.exc import BackendCompilerFailed

import attnres_compile
import attnres_kernels
import attnres_passes
from attnres_compile.model.errors import NoStreamError, NotInForceError
from attnres_compile.models.errors import MissingExtraError
from attnres_kernels.errors import PAGE, AttnResError, section_of
from attnres_passes.torch_private.dynamo import as_backend_failure

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = re.findall(r"^## (.+)$", (ROOT / PAGE).read_text(), re.MULTILINE)


def subclasses(kind: type[AttnResError]) -> Iterator[type[AttnResError]]:
    for derived in kind.__subclasses__():
        yield derived
        yield from subclasses(derived)


def classes() -> set[type[AttnResError]]:
    """Every class of error of the three packages."""
    for package in (attnres_compile, attnres_kernels, attnres_passes):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found = (kind for kind in {AttnResError, *subclasses(AttnResError)} if kind.__module__.startswith("attnres_"))
    # What is raised in a compilation is of a class made for it, which bears the name of ours.
    return {kind for kind in found if not issubclass(kind, BackendCompilerFailed)}


def test_every_class_has_a_section_and_every_section_a_class() -> None:
    names = [kind.__name__ for kind in classes()]
    assert sorted(names) == sorted(SECTIONS)
    assert {section_of(kind) for kind in classes()} == {f"{PAGE}#{name.lower()}" for name in SECTIONS}


def test_the_page_of_the_messages_exists() -> None:
    assert (ROOT / PAGE).is_file()


@pytest.mark.parametrize("error", [NotInForceError("found. Do."), MissingExtraError("found. Do."), NoStreamError(())])
def test_the_last_line_leads_to_the_section(error: AttnResError) -> None:
    """So it does of the class that is torch's as well, of copies, and of what torch makes of the text."""
    name = type(error).__name__.lower()
    failure = as_backend_failure(error)
    assert isinstance(failure, AttnResError)
    pickled, pickled_failure = pickle.loads(pickle.dumps([error, failure]))
    for one in (error, failure, pickled, pickled_failure, copy.copy(error), copy.copy(failure)):
        assert str(one) == f"{error.message}\nSee docs/errors.md#{name}."
        assert isinstance(one, type(error))
        assert vars(one).get("declined") == vars(error).get("declined")
    failure.args = (f"{failure.args[0]}\n\nfrom user code: line 1",)  # as Dynamo does
    assert str(failure).endswith(f"from user code: line 1\nSee docs/errors.md#{name}.")
    assert str(failure).count("See docs") == 1


def test_a_text_that_was_made_of_another_has_one_pointer() -> None:
    """Errors of worker threads are made anew from their traceback."""
    again = NotInForceError(f"Caught in a thread.\n{NotInForceError('found. Do.')}")
    assert str(again).count("See docs/errors.md#notinforceerror.") == 1


def test_a_class_of_a_user_leads_to_the_nearest_of_ours() -> None:
    class Mine(NotInForceError):
        pass

    assert str(Mine("found. Do.")).endswith("#notinforceerror.")
