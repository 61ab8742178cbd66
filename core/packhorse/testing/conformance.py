"""``BackendConformance``: derive from it, name a device, and pytest runs the whole kit on it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pytest

from packhorse.device import Device
from packhorse.device import device as open_device
from packhorse.errors import ArgumentValueError, PackhorseError
from packhorse.testing import op_cases
from packhorse.testing._device_tests import DeviceTests
from packhorse.testing._model_tests import ModelTests
from packhorse.testing.compare import check_equal
from packhorse.testing.op_cases import OpCase
from packhorse.testing.plugin import UNSUPPORTED

__all__ = ["BackendConformance", "run_op"]

Array: TypeAlias = np.ndarray[Any, Any]


class BackendConformance(DeviceTests, ModelTests):
    """Tests of one device. Derive from it in a test file and set :attr:`device`.

    Both lists map test names (``test_threads_share_a_model``, ``test_operator[Conv*]``, shell
    wildcards) to reasons. A test that passes although it is on a list fails, and so does a list
    with a name that no test has: the lists stay true.

    Attributes
    ----------
    device : str
        The device string.
    unsupported : mapping of str to str
        What the device does not offer. The tests are run all the same, and must end in a
        :class:`~packhorse.errors.PackhorseError`: a wrong result is a failure.
    xfail : mapping of str to str
        Known bugs: these tests fail, however they do.
    sample : int, optional
        Only so many operator cases, always the same ones: for devices that compile slowly.
    rtol, atol : mapping of dtype name to float
        Tolerances for operators, over :data:`packhorse.testing.compare.TOLERANCES`.
    """

    device = ""
    unsupported: ClassVar[Mapping[str, str]] = {}
    xfail: ClassVar[Mapping[str, str]] = {}
    sample: ClassVar[int | None] = None
    rtol = {}  # noqa: RUF012 - typed where the tests use it
    atol = {}  # noqa: RUF012
    packhorse_device: ClassVar[str | None] = None
    """What reports call the device; set by itself."""
    from_command_line: ClassVar[bool] = False
    """Whether the device is that of ``--packhorse-device``."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.packhorse_device = cls.device or None

    @pytest.fixture(autouse=True)
    def _expected(self, request: pytest.FixtureRequest) -> None:
        """Marks the tests of the lists: strict, so that a pass nobody expected fails."""
        self._choose(request.config)
        name = request.node.name
        for pattern, reason in self.unsupported.items():
            if matches(name, pattern):
                text = UNSUPPORTED + reason
                mark = pytest.mark.xfail(strict=True, reason=text, raises=PackhorseError)
                request.node.add_marker(mark)
                return
        for pattern, reason in self.xfail.items():
            if matches(name, pattern):
                request.node.add_marker(pytest.mark.xfail(strict=True, reason=reason))
                return

    def _choose(self, config: pytest.Config) -> None:
        """Take the device of the command line, where the class leaves it to that."""
        kit = type(self)
        if self.from_command_line:
            kit.device = kit.packhorse_device = config.getoption("packhorse_device", None) or ""
            if not kit.device:
                pytest.skip("no device was named: pytest --packhorse-device acme:0")
        if not kit.device:
            raise ArgumentValueError(f'{kit.__name__} names no device; write: device = "acme:0"')

    @pytest.fixture
    def opened(self) -> Device:
        """The device, as every user opens it."""
        return open_device(self.device)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """The operator cases: all, or the sample that was asked for."""
        if metafunc.definition.originalname == "test_operator":
            count = self.sample
            if self.from_command_line:
                count = metafunc.config.getoption("packhorse_sample", None)
            chosen = op_cases.names() if count is None else op_cases.sample(count)
            metafunc.parametrize("case", chosen, ids=chosen)

    def test_operator(self, opened: Device, case: str) -> None:
        """The operator gives what its NumPy reference gives, dtype and shape included."""
        run_op(op_cases.find(case), opened, self.rtol, self.atol)

    def test_the_lists_name_tests(self) -> None:
        """Every entry of ``unsupported`` and ``xfail`` names a test and has a reason."""
        known = list(_names(type(self)))
        for pattern, reason in (*self.unsupported.items(), *self.xfail.items()):
            assert reason, f"'{pattern}' needs a reason"
            assert any(matches(name, pattern) for name in known), f"no test is like '{pattern}'"
        both = self.unsupported.keys() & self.xfail.keys()
        assert not both, f"{sorted(both)} are on both lists"


def matches(name: str, pattern: str) -> bool:
    """Whether a test name is like a pattern; ``[`` is itself, ``*`` and ``?`` are wildcards."""
    return fnmatch.fnmatchcase(name, pattern.replace("[", "[[]"))


def _names(kit: type) -> Iterator[str]:
    for name in dir(kit):
        if name == "test_operator":
            yield from (f"test_operator[{case}]" for case in op_cases.names())
        elif name.startswith("test_"):
            marks = getattr(getattr(kit, name), "pytestmark", ())
            made = [m for m in marks if m.name == "parametrize"]
            yield from (f"{name}[{value}]" for m in made for value in m.args[1])
            if not made:
                yield name


def run_op(
    case: OpCase,
    device: Device,
    rtol: Mapping[str, float] | None = None,
    atol: Mapping[str, float] | None = None,
) -> None:
    """Run one operator case on a device and compare with the NumPy reference.

    Raises
    ------
    AssertionError
        Another number of outputs, dtype, shape or value.
    PackhorseError
        What the device refuses.
    """
    from packhorse.compiler.reference import ReferenceExecutable
    from packhorse.model import Model

    graph, feeds = op_cases.graph_of(case, case.arrays())
    wanted = list(ReferenceExecutable(graph).run(feeds).values())
    with Model(graph) as model:
        result = model(**feeds, device=device)
    found = list(result) if isinstance(result, tuple) else [result]
    assert len(found) == len(wanted), f"{len(found)} outputs, wanted {len(wanted)}"
    for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        check_equal(ours, theirs, f"{case.name}: output {number}", rtol, atol)
