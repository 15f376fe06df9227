"""meteor.py against the Java program's recorded output, its published values, and a slow copy of the search as described."""
import gzip
import json
import random
import re
import zlib
from pathlib import Path

import pytest
from conftest import SHARED

from files import cache
from metrics import meteor, meteor_alignment, meteor_resources, meteor_score
from metrics.meteor_alignment import EXACT, PARAPHRASE, STEM, SYNONYM, Match

PUBLISHED = [
    (["There is a place in the city centre, Alimentum, that is not family-friendly."],
     "Alimentum is located in the city centre. It is not family-friendly.", 0.4249),                       # nltk issue 2655
    (["It is a guide to action that ensures that the military will forever heed Party commands"],
     "It is a guide to action which ensures that the military always obeys the commands of the party", 0.4474),  # evaluate 115
    (["the cat sat on the mat"], "the cat was sat on the mat", 0.511956),                                  # nlg-eval issue 105
    (["Test en français.", "Le test en français."], "Le test est en français.", 0.483724)]                 # nlg-eval's tests


@pytest.fixture(scope="module")
def recorded() -> list[dict]:
    path = SHARED / "reference" / "conformance" / "meteor_pairs.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def one_scan(recorded) -> None:
    """Look through the real table once, for all texts of this module."""
    texts = ["near close to the owl pub mill a inexpensive dishes for"]
    texts += [text for references, _, _ in PUBLISHED for text in references]
    texts += [text for pair in recorded for text in pair["refs"]]
    near = meteor.paraphrases_near([" ".join(meteor.normalize(text)) for text in texts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meteor, "paraphrases_near", lambda references: near)
        yield


@pytest.mark.parametrize("text, words", [
    ("It's near p.m. family-friendly", "it 's near pm family friendly"), ("at 5.", "at 5 ."), ("e.g. this", "eg this"),
    ("centre. It", "centre . it"), ("no. x 5", "no. x 5"), ("centre. it", "centre. it"), ("1,000 a,b 5,a", "1,000 a , b 5 , a"),
    ("wait... now..", "wait ... now .."), ("“x” ‘y’ ''z''", '" x " \' y \' " z "'), ("a--b 5-6 x - y", "a b 5 6 x - y"),
    ("(£5) café’s", "( £ 5 ) café 's"), ("90's 'n'", "90 's ' n '"), ("", ""), ("a\u00a0b \u00a0", "a b")])
def test_normalize(text, words):
    assert meteor.normalize(text) == words.split()


def test_words_normalised_one_by_one_are_those_of_the_whole_text():
    """20,000 texts of little but marks, which meet at word ends as they rarely do."""
    draw, marked = random.Random(0), 0
    for _ in range(20_000):
        text = "".join(draw.choice("ab1 .,'-`’\"é£“") for _ in range(draw.randint(1, 12)))
        marked += bool(meteor.GLUED_MARKS.search(text))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(meteor, "GLUED_MARKS", re.compile(""))             # every text is taken as a whole
            whole = meteor.normalize(text)
        assert meteor.normalize(text) == whole, text
    assert 400 < marked < 10_000


@pytest.mark.parametrize("text, value", [
    ("", 0), ("a", 97), ("pub", 111357), ("restaurant", -1772467395 & 0xFFFFFFFF), ("é", 233), ("😀", 1772899)])
def test_java_hash(text, value):
    assert meteor_alignment.java_hash(text) == value


def matches_of(hypothesis: str, reference: str) -> set[tuple[str, str, int]]:
    words, other = hypothesis.split(), reference.split()
    (matcher,) = meteor.matchers_of([[other]], [words])
    return {(" ".join(words[m.hyp_start:m.hyp_end]), " ".join(other[m.ref_start:m.ref_end]), m.module)
            for m in sum(matcher.matches(other), [])}


def test_the_four_kinds_of_match(one_scan):
    found = matches_of("the pub serves cheap food close to a city", "inexpensive dishes for the pub near the town serving")
    assert {("pub", "pub", EXACT), ("serves", "serving", STEM), ("cheap", "inexpensive", SYNONYM)} <= found
    assert ("close to", "near", PARAPHRASE) in found
    assert not any(module == EXACT and first != second for first, second, module in found)


def slow_search(starting_at: list[list[Match]]) -> list[Match]:
    """The original's search, one object a path, with nothing left out."""
    fixed = meteor_alignment.fixed_matches(starting_at)
    start = {"matches": {j: starting_at[j][0] for j in fixed}, "m1": 0, "m2": 0, "chunks": 0, "idx": 0, "last": -1,
             "distance": 0}
    start["used1"] = {i for m in start["matches"].values() for i in range(m.hyp_start, m.hyp_end)}
    start["used2"] = {j for m in start["matches"].values() for j in range(m.ref_start, m.ref_end)}

    def take(path, match, charged):
        weight = 1 if match.module == EXACT else 0.5
        path["m1"] = int(path["m1"] + weight * (match.hyp_end - match.hyp_start))
        path["m2"] = int(path["m2"] + weight * (match.ref_end - match.ref_start))
        path["chunks"] += path["last"] != -1 and match.hyp_start != path["last"]
        path["idx"], path["last"] = match.ref_end, match.hyp_end
        charged["distance"] += abs(match.ref_start - match.hyp_start)

    def order(path):
        return -(path["m1"] + path["m2"]), path["chunks"], path["distance"]

    paths = [start]
    for cur in range(len(starting_at) + 1):
        following = []
        for path in sorted(paths, key=order)[:40]:
            if cur == len(starting_at):
                path["chunks"] += path["last"] != -1
            elif cur in path["used2"]:
                if cur >= path["idx"]:
                    take(path, path["matches"][cur], path)
            else:
                for match in starting_at[cur]:
                    words1, words2 = set(range(match.hyp_start, match.hyp_end)), set(range(match.ref_start, match.ref_end))
                    if not words1 & path["used1"] and not words2 & path["used2"]:
                        child = dict(path, matches=path["matches"] | {cur: match}, used1=path["used1"] | words1,
                                     used2=path["used2"] | words2)
                        take(child, match, path)                             # the path is charged, not its child
                        following.append(child)
                path["chunks"] += path["last"] != -1
                path["last"] = -1
                path["idx"] += 1
            following.append(path)
        paths = following
    best = sorted(paths, key=order)[0]["matches"]
    return [best[j] for j in sorted(best)]


def random_matches(generator, hypothesis_length: int, reference_length: int, number: int) -> list[list[Match]]:
    starting_at = [[] for _ in range(reference_length)]
    for _ in range(number):
        j, i = generator.randrange(reference_length), generator.randrange(hypothesis_length)
        module = generator.choice((EXACT, EXACT, STEM, SYNONYM, PARAPHRASE, PARAPHRASE))
        ends = [start + (generator.randrange(1, 4) if module == PARAPHRASE else 1) for start in (j, i)]
        starting_at[j].append(Match(j, min(ends[0], reference_length), i, min(ends[1], hypothesis_length), module))
    return starting_at


def test_the_search_equals_a_slow_one():
    """From no match, with gaps, to so many (70) that the beam of 40 paths loses some at almost every word."""
    generator = random.Random(9)
    several = 0
    for most in [30] * 60 + [70] * 20:
        n1, n2 = generator.randrange(4, 14), generator.randrange(4, 14)
        starting_at = random_matches(generator, n1, n2, generator.randrange(most // 2 if most > 30 else 0, most))
        expected = slow_search(starting_at)
        assert meteor_alignment.align(starting_at) == expected
        several += len(expected) > 3
    assert several > 40


WORDS = "the pub near a mill serves cheap food inexpensive dishes serving close to town it is of and an not".split()


def test_skipped_references_never_change_the_statistics(one_scan):
    """Against the plain way: align every reference and take the first of the best."""
    generator = random.Random(4)
    references = [[[generator.choice(WORDS) for _ in range(generator.randrange(1, 16))] for _ in range(6)] for _ in range(80)]
    hypotheses = [[generator.choice(WORDS) for _ in range(generator.randrange(0, 16))] for _ in range(78)]
    hypotheses += references[0][:1] + references[1][3:4]                     # two that are equal to a reference
    references[-1] = references[1]
    references[-2] = references[0] * 2                                       # and one with equal references
    tight = 0
    for texts, words, matcher in zip(references, hypotheses, meteor.matchers_of(references, hypotheses), strict=True):
        candidates = [meteor_score.statistics_of(words, text, meteor_alignment.align(matcher.matches(text)))
                      for text in texts]
        assert meteor_score.best_statistics(matcher, texts) == max(candidates, key=meteor_score.score_of)
        for text, candidate in zip(texts, candidates, strict=True):
            ceiling = meteor_score.Ceiling(matcher).of(text)
            assert meteor_score.score_of(candidate) <= ceiling + 1e-12
            tight += 0 < ceiling <= meteor_score.score_of(candidate) + 1e-12
    assert tight > 20


def plain_matches(words: list[str], reference: list[str], paraphrases: meteor_alignment.Paraphrases) -> list[Match]:
    """Every pair of words and of phrases compared with each other."""
    found = []
    for i, first in enumerate(map(meteor_alignment.describe, words)):
        for j, second in enumerate(map(meteor_alignment.describe, reference)):
            found += [Match(j, j + 1, i, i + 1, module) for module, same in (
                (EXACT, first.hash == second.hash),
                (STEM, first.hash != second.hash and first.stem_hash == second.stem_hash),
                (SYNONYM, first.hash != second.hash and first.synsets & second.synsets)) if same]
    for pair in ((a.split(), b.split()) for a, partners in paraphrases.by_first.items() for b in partners):
        for in_reference, in_hypothesis in (pair, pair[::-1]):
            found += [Match(j, j + len(in_reference), i, i + len(in_hypothesis), PARAPHRASE)
                      for j in range(len(reference)) if reference[j:j + len(in_reference)] == in_reference
                      for i in range(len(words)) if words[i:i + len(in_hypothesis)] == in_hypothesis]
    return sorted(found)


def test_all_matches_are_found(one_scan):
    generator = random.Random(8)
    references, hypotheses = ([[generator.choice(WORDS) for _ in range(generator.randrange(1, 16))] for _ in range(40)]
                              for _ in range(2))
    paraphrases = meteor.paraphrases_between([references], hypotheses)
    vocabulary, kinds = meteor_alignment.Vocabulary(WORDS), set()
    for words in hypotheses:
        matcher = meteor_alignment.Matcher(words, references[:20], vocabulary, paraphrases)
        for reference in references[:20]:
            expected = plain_matches(words, reference, paraphrases)
            assert sorted(sum(matcher.matches(reference), [])) == expected
            kinds |= {(match.module, match.ref_end - match.ref_start, match.hyp_end - match.hyp_start) for match in expected}
    assert {(EXACT, 1, 1), (STEM, 1, 1), (SYNONYM, 1, 1), (PARAPHRASE, 1, 2), (PARAPHRASE, 2, 1)} <= kinds


@pytest.mark.parametrize("references, hypothesis, published", PUBLISHED)
def test_values_published_for_these_sentences(one_scan, references, hypothesis, published):
    digits = len(str(published)) - 2
    assert round(meteor.meteor([references], [hypothesis]).system, digits) == published


def test_a_set_is_scored_by_its_sums_and_perfect_matches_add_no_chunk(one_scan):
    references, hypotheses = [["the owl sleeps here"], ["a pub near the mill"]], ["the owl sleeps here", "the mill has a pub"]
    scores = meteor.meteor(references, hypotheses)
    sums = [a + b for a, b in zip(*scores.columns["meteor_stats"], strict=True)]
    sums[20] -= 1
    assert scores.segments[0] == 1 and scores.system == meteor_score.score_of(sums) != sum(scores.segments) / 2
    assert meteor.meteor(references[:1], hypotheses[:1]).system == 1


def test_of_equally_good_references_the_first_counts(one_scan):
    scores = meteor.meteor([["quiet here", "so very far away"]], ["pub"])
    assert scores.segments == [0] and scores.columns["meteor_stats"][0][:2] == [1, 2]


@pytest.fixture
def own_table(monkeypatch, tmp_path) -> Path:
    """A small table in the place of the real one, and an empty cache."""
    pairs = [("close to", "near"), ("far", "far away"), ("near", "close to"), ("owl", "bird"), ("mill", "old mill")]
    table = tmp_path / "table.gz"
    table.write_bytes(gzip.compress("".join(f"0.5\n{a}\n{b}\n" for a, b in pairs).encode()))
    monkeypatch.setattr(meteor_resources, "resource_paths", lambda: (None, table))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return table


def test_kept_paraphrases_change_nothing(own_table, monkeypatch):
    """Pairs are found in both directions, and a damaged or unwritable cache does no harm."""
    def find():
        near = meteor_resources.paraphrases_near(["close to the owl", "an old mill"])
        return meteor_resources.select_paraphrases(near, ["close to the owl", "an old mill"], ["near the mill and far away"])

    expected = [("close to", "near"), ("near", "close to"), ("mill", "old mill")]
    assert find() == expected
    file, = cache.folder().iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(meteor_resources, "scan_table", None)                  # the second time the table stays closed
        assert find() == expected
    for damage in (b"", b"no zlib", zlib.compress(b"x")[:-1]):
        file.write_bytes(damage)
        assert find() == expected
        assert file.read_bytes() != damage
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))                          # a file: nothing can be written there
    assert find() == expected


def test_paraphrases_are_kept_for_this_code_only(own_table, monkeypatch, tmp_path):
    """Another version of the file that finds them finds them anew."""
    for version in (b"old", b"new"):
        source = tmp_path / version.decode()
        source.write_bytes(version)
        monkeypatch.setattr(meteor_resources, "__file__", str(source))
        monkeypatch.setattr(meteor_resources, "scan_table", lambda table, references, version=version: version)
        assert meteor_resources.paraphrases_near(["close to the owl"]) == version


@pytest.mark.parametrize("damage", [
    lambda whole: whole[:len(whole) // 2], lambda whole: whole[:-1], lambda whole: whole[:5], lambda whole: b"",
    lambda whole: whole[:-8] + bytes(8)], ids=["half", "all but a byte", "header", "nothing", "other checksum"])
def test_a_table_that_is_not_whole_is_an_error_and_nothing_is_kept(own_table, damage):
    """Fewer pairs would lower METEOR without a word."""
    own_table.write_bytes(damage(own_table.read_bytes()))
    with pytest.raises(ValueError, match=r"table\.gz: .+, expected a whole gzip file: run  pip install --force-reinstall"):
        meteor_resources.paraphrases_near(["close to the owl", "an old mill"])
    assert not cache.folder().exists()


def test_every_recorded_text_is_normalised_alike(shared):
    folder = shared / "reference" / "conformance"
    texts, expected = ((folder / f"meteor_norm_{kind}.txt").read_text(encoding="utf-8").split("\n")[:-1]
                       for kind in ("input", "expected"))
    assert len(texts) == 4000
    for text, line in zip(texts, expected, strict=True):
        assert meteor.normalize(text) == line.lower().split(" ") or not meteor.normalize(text) and not line, text


def test_every_recorded_pair_has_the_same_statistics(shared, recorded, one_scan):
    scores = meteor.meteor([pair["refs"] for pair in recorded], [pair["hyp"] for pair in recorded])
    assert len(recorded) == 600
    assert scores.columns["meteor_stats"] == [[int(float(number)) for number in pair["stats"].split()] for pair in recorded]
