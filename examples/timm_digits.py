"""A vision transformer of timm on a real data set, scikit-learn's 1,797 handwritten digits of 8 x 8 pixels.

python examples/timm_digits.py
"""

import timm
import torch
from sklearn.datasets import load_digits
from small_llama import parsed

import attnres_compile

arguments = parsed(__doc__, steps=200)
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None]
images = (images - images.mean()) / images.std()
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels))
test, train = order[:360], order[360:]

model = timm.create_model(
    "vit_tiny_patch16_224",
    img_size=8,
    patch_size=2,
    in_chans=1,
    num_classes=10,
    embed_dim=48,
    depth=arguments.layers,
    num_heads=4,
    global_pool="avg",
)
plan = attnres_compile.prepare(model, (images[:4],), num_blocks=4)
print(f"{len(plan.streams[0].writes)} writes in {plan.streams[0].num_blocks} blocks")
model.compile(backend="attnres", options={"inner": arguments.inner})
# timm's own create_optimizer_v2 makes groups by names; a vector of one dimension is undecayed there as well.
optimizer = torch.optim.AdamW(attnres_compile.param_groups(model, lr=4e-3, weight_decay=0.05))


def accuracy() -> float:
    model.eval()
    with torch.no_grad():
        return (model(images[test]).argmax(-1) == labels[test]).float().mean().item()


for step in range(arguments.steps):
    model.train()
    rows = train[torch.randint(0, len(train), (64,))]
    loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 20 == 0 or step == arguments.steps - 1:
        print(f"step {step:3d}  loss {loss.item():.3f}")
print(f"accuracy {accuracy():.3f} on {len(test)} images that were not trained on")
print(attnres_compile.status(model))
