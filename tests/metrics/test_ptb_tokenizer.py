"""ptb_tokenizer.py against what the Java lexer makes of the same texts; whole sets are compared in test_eval_metrics."""
import random
from pathlib import Path

import pytest

from metrics.ptb_tokenizer import PUNCTUATION, next_tokens, ptb_words, shape_of, tokenize

# every pair was read off the original's output
TOKENS = {
    "It isn't cheap, it's £20-25 (high-end).": "It is n't cheap , it 's # 20-25 -LRB- high-end -RRB- .",
    "centre.It 5.It centre,it pub.The": "centre.It 5 . It centre , it pub.The",
    "Rated 5 out of 5.Really": "Rated 5 out of 5 . Really",
    "5.it-x i.e.kid-friendly non-U.S. Mr.-x": "5.it-x i.e.kid-friendly non-U.S. Mr.-x",
    "kid -friendly kid- friendly kid - friendly": "kid - friendly kid - friendly kid - friendly",
    "can't cannot gonna 'tis we'll I'm they've": "ca n't can not gon na 't is we 'll I 'm they 've",
    "don’t it’s rock ’n’ roll O’Neil ’90s": "do n't it 's rock ’n’ roll O’Neil ’90s",
    "a'sb it'sx king's1": "a ` sb it ` sx king 's 1",
    "THE EAGLE'S BAR ISN'T": "THE EAGLE 'S BAR IS N'T",
    "'nice' 'n' y'all ma'am o'clock d'Arc-x": "` nice ' 'n' y' all ma'am o'clock d'Arc-x",
    "the '72 the '90s the 1990's": "the '72 the '90s the 1990 's",
    "-lrb- x -RRB- x-lrb-y": "-lrb- x -RRB- x-lrb-y",
    ":) :-) ;) :P =( :D. price:(high": ":-RRB- :--RRB- ;-RRB- :P =-LRB- :D . price : -LRB- high",
    "1,000.50 5:30 20:10-30 ,20-25 a,5-6": "1,000.50 5:30 20:10 -30 ,20 -25 a,5-6",
    "3/5 24/7 1 1/2 and/or é/b": "3/5 24/7 1\u00a01/2 and/or é / b",
    "(020) 7946-0958 or 555-123-4567 or 01223 123456": "-LRB-020-RRB-\u00a07946-0958 or 555-123-4567 or 01223 123456",
    "wait... what?! no -- yes — ok …": "wait ... what ?! no -- yes -- ok ...",
    'a "quoted" word “x” ``y\'\'': "a `` quoted '' word `` x '' `` y ''",
    "€5 $5 5¢ 10% #1 @x #tag a*b": "$ 5 $ 5 5 cents 10 % # 1 @x #tag a * b",
    "AT&T C++ C# A+B x++ <unk> </s> <b c>": "AT&T C++ C# A+B x + + <unk> </s> <b\u00a0c>",
    "www.owl.com/menu. owl.com/x owl.co.uk me@owl.com": "www.owl.com/menu . owl.com / x owl.co.uk me@owl.com",
    "Mr. X of St. Ives, e.g. etc., Inc.-x wed.a x-y.,": "Mr. X of St. Ives , e.g. etc. , Inc. - x wed. a x-y. ,",
    "name_x NAME_1 __x__ [x] {y} a|b": "name_x NAME_1 __ x __ -LSB- x -RSB- -LCB- y -RCB- a | b",
    "Café naïve smörgåsbord ½ a\u200bb 😀": "Café naïve smörgåsbord 1/2 a b",
}


@pytest.mark.parametrize("text", TOKENS)
def test_tokens(text):
    assert " ".join(tokenize(f"{text}\nand")) == f"{TOKENS[text]} \n and"


@pytest.mark.parametrize("text, expected", [
    ("open till 5 p.m. The end", "open till 5 p.m. . The end"), ("open till 5 p.m. to go", "open till 5 p.m. to go"),
    ("the grade A. The end", "the grade A . The end"), ("a bar etc. It is", "a bar etc. . It is"),
    ("a bar etc.", "a bar etc. ."), ("a bar etc. and more", "a bar etc. and more"),
    ("the U.S. is", "the U.S. is"), ("the U.S. It is", "the U.S. . It is")])
def test_a_period_may_end_abbreviation_and_sentence(text, expected):
    assert " ".join(tokenize(text)) == expected


def test_odd_lines_have_the_recorded_tokens():
    """500 lines of abbreviations, contractions, entities, addresses, numbers, quotes, tags and smileys without order."""
    folder = Path(__file__).parent / "data" / "ptb"
    text, recorded = ((folder / f"{name}.txt").read_bytes().decode("utf-8") for name in ("lines", "tokens"))
    lines, expected = text.split("\n"), recorded.split("\n")
    assert len(lines) == len(expected) > 500
    for line, ours, tokens in zip(lines, " ".join(tokenize(text)).split("\n"), expected, strict=True):
        assert ours.strip(" ") == tokens.strip(" "), line


def test_every_adversarial_line_has_the_tokens_of_the_original(shared):
    folder = shared / "reference" / "conformance"
    text, expected = ((folder / f"ptb_{kind}.txt").read_bytes().decode("utf-8") for kind in ("input", "expected"))
    assert text.count("\n") == 2000
    for line, ours, tokens in zip(text.split("\n"), " ".join(tokenize(text)).split("\n"), expected.split("\n"), strict=True):
        assert ours.strip(" ").lower() == tokens.strip(" "), line


ATOMS = """a A I . , - ' ’ " 5 20 1/2 £ The the It in. Inc. Jan. U.S. U.S p.m. etc. A. x. < <b> > ( ) (020) 7946 : ; = D &
    / @ # _ n't 's d' cannot É ½ … ! ? no. art. 'tis `` &eacute; &apos; (^_^) anti- a.txt""".split() + ["\u00a0", "\t"]


def test_remembered_pieces_have_the_tokens_of_the_rules():
    """The same pieces of text again and again, each time with something else after them."""
    generator = random.Random(6)
    for _ in range(150):
        text = "".join(generator.choice(ATOMS) + generator.choice(["", "", " ", " ", "\n", "  "]) for _ in range(60)) * 2
        expected, position, shape = [], 0, shape_of(text)
        while position < len(text):
            tokens, position = next_tokens(text, shape, position)
            expected += tokens
        assert list(tokenize(text)) == expected


def test_lines_stay_lines_and_the_lexer_looks_across_their_ends():
    assert ptb_words(["the grade A.", "The end.", "", "x"]) == ["the grade a", "the end", "", "x"]
    assert ptb_words(["the grade A.", "he said"]) == ["the grade a.", "he said"]


def test_plain_punctuation_is_dropped_and_brackets_are_not():
    assert ptb_words(["Well, (so): \"it\" is; - fine... ok? No! -- `x' [y] {z} ?!"]) == \
        ["well -lrb- so -rrb- it is fine ok no x -lsb- y -rsb- -lcb- z -rcb- ?!"]
    assert "-LRB-" in PUNCTUATION and "-lrb-" not in PUNCTUATION


def test_no_character_stops_the_lexer():
    codes = [*range(1, 0x180), *range(0x2000, 0x2060), 0x20A0, *range(0x250, 0xD800, 97), *range(0xE000, 0x10000, 97), 0x1F600]
    texts = [f"a{chr(code)}b 5{chr(code)} {chr(code)}" for code in codes if chr(code) != "\n"]
    assert len(ptb_words(texts)) == len(texts)
