"""The simulated device in a process of its own: torch has to know of a device before its first backward pass."""
import subprocess
import sys
from pathlib import Path


def test_on_the_simulated_device(repository):
    """The tests of on_the_device.py."""
    tests = Path(__file__).with_name("on_the_device.py")
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests], cwd=repository,
                         capture_output=True, text=True, encoding="utf-8")
    assert run.returncode == 0, run.stdout
