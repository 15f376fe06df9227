"""Where the cases of test_advice.py are registered, and what they are made of: folders, models, adapters, changes to files."""
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import lora as L
import model as M
from adapters import save_adapter
from files import text
from files import weights as W

ROOT = Path(__file__).resolve().parents[1]
TOY = ROOT / "toy"
CASES = {}


def advises(file: str, words: str):
    """Register a case under the file and the words of its message."""
    def register(case):
        CASES[file, words] = case
        return case
    return register


@dataclasses.dataclass
class World:
    """What a case may use: an empty folder, the toy tasks' data, and pytest's monkeypatch."""
    folder: Path
    data: Path
    patch: pytest.MonkeyPatch

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def base(self, kind: str = "gpt2") -> Path:
        """A copy of a toy model's folder."""
        return Path(shutil.copytree(TOY / kind, self.folder / kind))

    def adapter(self, kind: str = "gpt2", name: str = "adapter", task: str = "", labels: int | None = None, **lora) -> Path:
        """An adapter whose B is not zero, saved."""
        model = adapted(M.load_pretrained(TOY / kind, num_labels=labels), **lora)
        save_adapter(model, self.folder / name, task=task)
        return self.folder / name


def adapted(model, rank=3, alpha=7, **lora):
    L.add_lora(model, rank, alpha, **lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.fill_(0.01)
    return model


def base(kind: str = "gpt2", **options):
    return M.load_pretrained(TOY / kind, **options)


def edited(path: Path, **changes) -> None:
    """Change keys of a JSON file; None takes one away."""
    text.write_json({key: value for key, value in (text.read_json(path) | changes).items() if value is not None}, path)


def edited_tensors(path: Path, change, metadata=None) -> None:
    """Apply `change` to the tensors of a safetensors file, its metadata kept."""
    content = path.read_bytes()
    header = json.loads(content[8:8 + int.from_bytes(content[:8], "little")])
    tensors = {name: tensor.clone() for name, tensor in W.read_safetensors(path).items()}
    W.write_safetensors(change(tensors) or tensors, path, metadata or header["__metadata__"])
