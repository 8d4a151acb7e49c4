#!/usr/bin/env bash
# pytorch-lightning 2.6.6 with torch 2.13.0 (CPU): once it is imported, a module that was compiled does not pickle.
#
# torch.compile(module) leaves the module as it was, but for what is set on the wrapper: that is handed on to the module.
# Lightning puts a function of its own in place of torch.compile, which keeps the arguments as _compile_kwargs on the
# wrapper, so on the user's module. If the backend is a closure or a lambda, torch.save(module) and pickle then fail,
# also of a module that is no LightningModule and was never given to Lightning.
#
# Output seen:
#   torch 2.13.0: pickled
#   pytorch-lightning 2.6.6: AttributeError: Can't pickle local object 'make_backend.<locals>.backend'
# Exits with 1 if either line changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0
"$folder/venv/bin/python" -m pip install --quiet pytorch-lightning==2.6.6
cat > "$folder/pickled.py" <<'PYTHON'
import pickle

import torch


def make_backend():
    def backend(gm, inputs):
        return gm.forward

    return backend


def pickled() -> str:
    module = torch.nn.Linear(2, 2)
    torch.compile(module, backend=make_backend())
    try:
        pickle.dumps(module)
    except (AttributeError, pickle.PicklingError) as error:
        return f"{type(error).__name__}: {error}"
    return "pickled"


print(f"torch {torch.__version__.partition('+')[0]}: {pickled()}")
import pytorch_lightning

print(f"pytorch-lightning {pytorch_lightning.__version__}: {pickled()}")
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/pickled.py" | tee "$folder/seen"
grep -qx "torch 2.13.0: pickled" "$folder/seen"
grep -q "^pytorch-lightning 2.6.6: AttributeError: Can't .*pickle local object .*make_backend.<locals>.backend" "$folder/seen"
