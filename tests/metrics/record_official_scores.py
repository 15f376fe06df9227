"""Record what the original programs say about the texts in data/, for the tests to compare with.

    python tests/metrics/record_official_scores.py              # rewrites ptb/tokens.txt; needs Java and pycocoevalcap
    python tests/metrics/record_official_scores.py CHECKOUT     # of github.com/tuetschek/e2e-metrics; nlg/scores.json too

The scores need Java and Perl (with XML::Twig, or an empty module of that name on PERL5LIB: it is only loaded for .xml
files) and pycocoevalcap. BLEU and NIST come from the checkout's pymteval.py and mteval-v13a-sig.pl, the tokens from
the Stanford jar and METEOR from its own, both as pycocoevalcap calls them, ROUGE-L and CIDEr from pycocoevalcap's
Python. Nothing of these programs is in this repository, and nothing but this script runs them.
"""
import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

DATA = Path(__file__).parent / "data" / "nlg"
ODD_LINES = Path(__file__).parent / "data" / "ptb"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=Path, nargs="?")
    checkout = parser.parse_args().checkout
    record_tokens()
    if checkout:
        record_scores(checkout.resolve())


def record_tokens() -> None:
    """Tokens of lines that were drawn at random from odd pieces, in one run, since the lexer looks across line ends.
    Upper case and punctuation are kept: the scorers' own call lower-cases and drops them after the lexer."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines"]
    output = subprocess.run([*command, str(ODD_LINES / "lines.txt")], check=True, stdout=subprocess.PIPE).stdout
    (ODD_LINES / "tokens.txt").write_bytes(output)


def record_scores(checkout: Path) -> None:
    hypotheses = (DATA / "hyp.txt").read_text(encoding="utf-8").split("\n")[:-1]
    groups = (DATA / "refs.txt").read_text(encoding="utf-8").strip().split("\n\n")
    references = [group.split("\n") for group in groups]
    hypotheses = [text.strip() for text in hypotheses]
    system, columns = {}, {}
    for scorer in (score_with_pymteval(checkout, references, hypotheses), score_with_perl(checkout, references, hypotheses),
                   score_with_coco(references, hypotheses)):
        system.update(scorer[0])
        columns.update(scorer[1])
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    text = f'{{"system": {json.dumps(system)},\n"segments": [\n{lines}\n]}}\n'
    (DATA / "scores.json").write_text(text, encoding="utf-8", newline="\n")


def score_with_pymteval(checkout: Path, references: list[list[str]], hypotheses: list[str]) -> tuple[dict, dict]:
    """BLEU and NIST as with the scorer's -p; None where it divides by zero."""
    sys.path[:0] = [str(checkout), str(checkout / "metrics")]
    pymteval = importlib.import_module("pymteval")

    def score(scorer, pairs):
        for hypothesis, texts in pairs:
            scorer.append(hypothesis, texts)
        with contextlib.suppress(ZeroDivisionError):
            return scorer.score()

    pairs = list(zip(hypotheses, references, strict=True))
    kinds = {"BLEU": pymteval.BLEUScore, "NIST": pymteval.NISTScore}
    columns = {name: [score(kind(), [pair]) for pair in pairs] for name, kind in kinds.items()}
    columns["sentBLEU"] = [score(pymteval.BLEUScore(smoothing=1.0), [pair]) for pair in pairs]
    return {name: score(kind(), pairs) for name, kind in kinds.items()}, columns


def score_with_perl(checkout: Path, references: list[list[str]], hypotheses: list[str]) -> tuple[dict, dict]:
    """BLEU and NIST of mteval-v13a; its --metricsMATR files hold all digits. Missing references are empty segments."""
    def document(kind: str, columns: list[list[str]]) -> str:
        documents = []
        for i, texts in enumerate(columns):
            segments = "\n".join(f'<seg id="{n}">{text}</seg>' for n, text in enumerate(texts, start=1))
            documents.append(f'<doc docid="d" genre="g" origlang="any" sysid="s{i}">\n{segments}\n</doc>')
        body = "\n".join(documents)
        return f'<{kind} setid="set" srclang="any" trglang="en">\n{body}\n</{kind}>\n'

    most = max(map(len, references))
    padded = [[texts[i] if i < len(texts) else "" for texts in references] for i in range(most)]
    system, columns = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, texts in (("src", [hypotheses]), ("tst", [hypotheses]), ("ref", padded)):
            (Path(folder) / f"{name}.sgm").write_text(document(f"{name}set", texts), encoding="utf-8")
        program = str(checkout / "metrics" / "mteval-v13a-sig.pl")
        subprocess.run(["perl", program, "-r", "ref.sgm", "-s", "src.sgm", "-t", "tst.sgm", "-f", "statistics",
                        "--metricsMATR-output"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        for name in ("BLEU", "NIST"):
            rows = (Path(folder) / f"{name}-seg.scr").read_text(encoding="utf-8").splitlines()
            columns[f"{name}_perl"] = [float(row.split("\t")[-1]) for row in rows]
            system[f"{name}_perl"] = float((Path(folder) / f"{name}-sys.scr").read_text(encoding="utf-8").split("\t")[-1])
    return system, columns


def score_with_coco(references: list[list[str]], hypotheses: list[str]) -> tuple[dict, dict]:
    """Tokens, METEOR with its statistics, ROUGE-L and CIDEr."""
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    words = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(references)})
    generated = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(hypotheses)})
    system, columns = {}, {"ptb_hyp": [generated[i][0] for i in range(len(hypotheses))],
                           "ptb_refs": [words[i] for i in range(len(hypotheses))]}
    meteor = Meteor()
    columns["meteor_stats"] = [[int(float(number)) for number in meteor._stat(generated[i][0], words[i]).split()]
                               for i in range(len(hypotheses))]
    for name, scorer in (("METEOR", meteor), ("ROUGE_L", Rouge()), ("CIDEr", Cider())):
        score, segments = scorer.compute_score(words, generated)
        system[name], columns[name] = float(score), list(map(float, segments))
    return system, columns


if __name__ == "__main__":
    main()
