"""stemmer.py against the words that METEOR's own stemmer was asked about, and by its rules."""
import pytest

from metrics.stemmer import stem


@pytest.mark.parametrize("word, expected", [
    ("restaurants", "restaur"), ("families", "famili"), ("family", "famili"), ("serving", "serv"), ("serves", "serv"),
    ("located", "locat"), ("priced", "price"), ("pubs", "pub"), ("gas", "gas"), ("this", "this"), ("ties", "tie"),
    ("cries", "cri"), ("agreed", "agre"), ("hopping", "hop"), ("hoping", "hope"), ("relational", "relat"),
    ("friendly", "friend"), ("formalize", "formal"), ("goodness", "good"), ("adjustment", "adjust"), ("adoption", "adopt"),
    ("rate", "rate"), ("controll", "control"), ("skis", "ski"), ("dying", "die"), ("news", "news"), ("inning", "inning"),
    ("generous", "generous"), ("communal", "communal"), ("arsenal", "arsenal"), ("yes", "yes"), ("boy's", "boy"),
    ("'cause", "caus"), ("by", "by"), ("", ""), ("é", "é"), ("cafés", "café"), ("20-25", "20-25")])
def test_stems(word, expected):
    assert stem(word) == expected


def test_every_recorded_word(shared):
    folder = shared / "reference" / "conformance"
    words, stems = ((folder / f"stem_{kind}.txt").read_text(encoding="utf-8").split("\n") for kind in ("input", "expected"))
    assert len(words) > 20_000
    assert [(word, stem(word)) for word in words] == list(zip(words, stems, strict=True))
