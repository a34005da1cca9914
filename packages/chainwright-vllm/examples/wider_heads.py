"""Write the bundled reasoner with heads of 32 instead of 24 dimensions, which vLLM's CPU backend does not take.

    python packages/chainwright-vllm/examples/wider_heads.py runs/reasoner-32

The new dimensions hold zeros, so that the model computes what it did:

- Queries and keys are rotated in pairs (i, i + 12). Both halves are padded to 16, and the base of the rotation is
  raised to the power 32/24, which leaves the frequencies of the first twelve pairs as they were.
- Their norm takes the mean over 32 instead of 24, and scores are divided by sqrt(32) instead of sqrt(24); the weights
  of both norms make up for that. Only the norm's epsilon of 1e-6 now counts as 4/3 of itself.
- Values are padded behind, and so are the columns of the output projection that read them.

A file beside the weights names the fingerprints of both models, so that repairs for the one are taken for the other.
"""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chainwright_vllm.weights import write_conversion

WIDE = 32


def widen(source: Path, out: Path) -> Path:
    """Write the model of `source` with heads of 32 dimensions to `out`, and return `out`."""
    config = json.loads((source / "config.json").read_text())
    d_head, n_heads = config["head_dim"], config["num_attention_heads"]
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors", "*.py", "__pycache__"))
    config |= {"head_dim": WIDE}
    theta = config["rope_parameters"]["rope_theta"] ** (WIDE / d_head)
    config["rope_parameters"] = {**config["rope_parameters"], "rope_theta": theta}
    (out / "config.json").write_text(json.dumps(config, indent=2))
    tensors = load_file(next(source.glob("*.safetensors")))
    wide = {name: _widened(name, value, n_heads, d_head) for name, value in tensors.items()}
    save_file(wide, out / "model.safetensors", {"format": "pt"})
    write_conversion(source, out)
    return out


def _widened(name: str, value: Tensor, n_heads: int, d_head: int) -> Tensor:
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return _halves(value.unflatten(0, (-1, d_head)), d_head).flatten(0, 1)
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        # the norm: sqrt(24/32) on both; the division of scores: sqrt(32/24) on the queries
        factor = 1.0 if "q_norm" in name else (d_head / WIDE) ** 0.5
        return _halves(value[None, :, None], d_head).flatten() * factor
    if name.endswith("v_proj.weight"):
        rows = value.unflatten(0, (-1, d_head))
        return torch.cat([rows, rows.new_zeros(len(rows), WIDE - d_head, rows.shape[2])], dim=1).flatten(0, 1)
    if name.endswith("o_proj.weight"):
        columns = value.unflatten(1, (n_heads, d_head))
        return torch.cat([columns, columns.new_zeros(len(value), n_heads, WIDE - d_head)], dim=2).flatten(1)
    return value


def _halves(heads: Tensor, d_head: int) -> Tensor:
    """Return `[heads, 32, columns]` of `[heads, d_head, columns]`, each half padded behind."""
    pad = heads.new_zeros(len(heads), (WIDE - d_head) // 2, heads.shape[2])
    first, second = heads.chunk(2, dim=1)
    return torch.cat([first, pad, second, pad], dim=1)


def reasoner() -> Path:
    """Return the folder of the bundled reasoner."""
    spec = find_spec("chainwright")
    if spec is None or spec.origin is None:
        sys.exit("The bundled reasoner comes with chainwright; run pip install --no-deps chainwright.")
    return Path(spec.origin).parent / "models" / "bundled" / "reasoner"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python wider_heads.py FOLDER")
    if Path(sys.argv[1]).exists():
        sys.exit(f"{sys.argv[1]} exists; choose another folder.")
    print(f"Wrote {widen(reasoner(), Path(sys.argv[1]))}.")
