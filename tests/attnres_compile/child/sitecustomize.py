"""On the path of child processes of the tests: the same torchvision shim as in the tests themselves."""

from tests.zoo.torchvision_shim import ensure_torchvision_imports

ensure_torchvision_imports()
