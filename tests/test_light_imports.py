"""torchvision is imported without torch's compiler, and with all of its own functions."""

from __future__ import annotations

import subprocess
import sys

HEAD = "import sys, torch\nfrom cnnvis_cli.light_imports import import_torchvision\n"


def told(code: str) -> str:
    """Return what a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_the_compiler_is_left_out() -> None:
    code = "import_torchvision('torchvision.models').get_model('alexnet')\n"
    code += "print([name for name in sys.modules if name.startswith('torch._dynamo')])"
    assert told(code) == "[]"


def test_what_torchvision_took_from_the_compiler_still_works() -> None:
    code = (
        "import_torchvision('torchvision')\n"
        "ops = sys.modules['torchvision.ops.roi_align']\n"
        "mine = ops.is_compile_supported('cpu')\n"
        "import torch._dynamo.utils as real\n"
        "print(mine == real.is_compile_supported('cpu'), hasattr(real, 'counters'))"
    )
    assert told(code) == "True True"


def test_a_torchvision_that_wants_more_of_the_compiler_gets_it() -> None:
    code = "import cnnvis_cli.light_imports as light\n"
    code += "light._is_compile_supported = None\n"
    code += "class Strict(light.ModuleType):\n"
    code += "    def __setattr__(self, name, value):\n"
    code += "        if name != 'is_compile_supported': super().__setattr__(name, value)\n"
    code += "light.ModuleType = Strict\n"
    code += "light.import_torchvision('torchvision.models').get_model('alexnet')\n"
    code += "import torch._dynamo.utils as real\n"
    code += "ops = sys.modules['torchvision.ops.roi_align']\n"
    code += "print(ops.is_compile_supported is real.is_compile_supported)"
    assert told(code) == "True"


def test_the_collector_leaves_torch_alone_and_goes_on() -> None:
    code = "import gc\nfrom cnnvis_cli.light_imports import load_torch\nload_torch()\n"
    code += "print(gc.isenabled(), gc.get_freeze_count() > len(gc.get_objects()) > 0)"
    done = [sys.executable, "-c", code]
    assert subprocess.check_output(done, text=True, timeout=120).strip() == "True True"


def test_the_loops_do_without_scipy_which_can_be_imported_afterwards() -> None:
    code = "from cnnvis_cli.network.tally import load_loops\n"
    code += "print(load_loops() is not None, 'scipy' in sys.modules)\nimport scipy.linalg"
    assert told(code) == "True False"
