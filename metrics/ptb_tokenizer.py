"""Penn Treebank tokens as the E2E scorer makes them: what METEOR, ROUGE-L and CIDEr read.

The scorer runs a Java lexer over all texts at once, lower-cases the tokens and drops plain punctuation:

    "The Vaults isn't cheap, it's £20-25 (high-end)."  ->  the vaults is n't cheap it 's # 20-25 -lrb- high-end -rrb-

This is a lexer of the same behaviour, written from a description of it and from its output. At every position all
RULES are tried; the longest match wins, and of equally long ones the first. A rule may look ahead: what it sees after
the token counts for the length but is read again. Case matters: "Jan." is a month, "in." is not.

So that a rule need not know 60,000 characters, it is matched against the shape of the text: the same text with every
character outside ASCII replaced by one of a few stand-ins, so that positions stay the same.
Left out: what neither E2E nor GLUE sentences call for, such as web addresses glued to other words, combining accents
after digits, and scripts without word spaces.
"""
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from metrics.texts import kept_groups

# Dropped after tokenisation, exactly these. Brackets are not among them: by then they are lower-case, -lrb- and so on.
PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())

# ---------------------------------------------------------------- shapes of characters

LOWER, UPPER, MARK, DIGIT, SYMBOL, NOTHING, NO_BREAK = "øØ\u0301٠¬\x00\u00a0"
KEPT = "\u00ad¢£¤¼½¾⁄⅓⅔€…"                                                   # characters with a rule of their own
STAND_INS = {
    "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u3000": NO_BREAK,
    "\u0091‘‛‹": "‘", "\u0092’›": "’", "\u0093“«": "“", "\u0094”»": "”",
    "\u0096\u0097–—―": "–", "\u058a‐‑": "‐", "\u0080₠": "€",
}
SYMBOLS = re.compile("[\u00a1\u00a5-\u00bf\u00d7\u00f7\u037e\u0387\u2016-\u2023\u2030-\u2042\u2070-\u208e\u20a4"
                     "\u2100-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff65\uffe0-\uffe6]")
CATEGORIES = {"Lu": UPPER, "Lt": UPPER, "Ll": LOWER, "Lm": LOWER, "Lo": LOWER, "Nd": DIGIT}


class Shapes(dict):
    """Code point -> shape, for str.translate; what is not asked for is not computed."""

    def __missing__(self, code: int) -> str:
        self[code] = shape = self.shape_of(chr(code))
        return shape

    @staticmethod
    def shape_of(character: str) -> str:
        if " " <= character < "\x7f" or character in "\t\n" or character in KEPT:
            return character
        if character > "\uffff":
            return NOTHING                                                   # two surrogates to the original, both unknown
        category = unicodedata.category(character)
        unnamed = SYMBOL if SYMBOLS.match(character) else MARK if category in ("Mn", "Mc", "Sk") else NOTHING
        return CATEGORIES.get(category, unnamed)


SHAPES = Shapes({ord(character): stand_in for group, stand_in in STAND_INS.items() for character in group})

# ---------------------------------------------------------------- pieces of patterns

SPACE = r"[ \t\u00a0]"
SPACE_OR_LINE = r"[ \t\n\u00a0]"
CAPITAL = "[A-ZØ]"
L = "[A-Za-zøØ\u0301\u00ad]"                                                 # letter
A = "[A-Za-z0-9øØ٠\u0301\u00ad]"                                             # letter or digit
D = "[0-9٠]"
APOSTROPHE = "['’]"
WORD = rf"{L}{A}*(?:[.!?]{L}{A}*)*"                                          # centre.It
NUMBER = rf"(?:{D}*(?:[.,:\u00ad]{D}+)+|{D}+)"
TAG = r"""</?[A-Za-z][A-Za-z0-9:._-]*(?: +[A-Za-z][A-Za-z0-9:._-]*(?: *= *(?:'[^'\n]*'|"[^"\n]*"))?)* */?>"""


def any_of(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


# A sentence may end before these: white space and a capital; white space and one of the usual first words
NEW_SENTENCE = rf"{SPACE_OR_LINE}(?:{SPACE_OR_LINE}|{CAPITAL}|{TAG})"
FIRST_WORD = "(?:" + "|".join(
    f"{word[0]}(?i:{word[1:]})" for word in """A About According After An As At But Earlier He Her Here However If In It
    Last Many More Now Once One Other Our She Since So Some Such That The Their Then There These They This We What When
    While Yet You""".split()) + ")"
FIRST_WORD_AHEAD = rf"{SPACE_OR_LINE}+(?:{FIRST_WORD}|{TAG}){SPACE_OR_LINE}"

# Abbreviations: those in which only the first letter may be a capital or must be one, then those in any case
CLOSING_ABBREVIATION = (
    "(?:" + any_of("Ark AZ Az Del DEL Ill ILL La LA Mass MASS Miss MISS Ore ORE Pa PA Tex TEX Wash WASH") + "|(?i:"
    + any_of("""al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc
    ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla
    penn plc ptys? ptes? rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo ph\\.d
    ed\\.d""") + r"))\.")
TITLE_ABBREVIATION = "(?i:" + any_of("""adj adm adv alex assoc asst attys? ave brig capt cf cie cmdr col comdr cpl dept
    det drs? elec ens ft gen govs? hon insp invt jos lieut lt maj messrs mfg mlle mme mrs? ms msgr mt mtg natl pfc ph
    pres profs? pvt reps? rev sens? sfc sgt spc ste? supts? treas vs wm""") + r")\."
NUMBER_ABBREVIATION = "(?i:" + any_of("art ca figs? nos? op pp prop") + r")\."
ACRONYM = (r"(?:[A-Za-z](?:\.[A-Za-z])+|(?:Canada|Sino|Korean|EU|Japan|[Nn]on)-U\.S|U\.S\.-(?:U\.K|U\.S\.S\.R))")

# Words with an apostrophe inside that stay whole, and what may stand between hyphens
ELISION = rf"[dDoOlL]{APOSTROPHE}{A}{{2,}}"                                  # d'Italia, o'clock
WHOLE_WITH_APOSTROPHE = "|".join((
    rf"[A-HJ-XZn]{APOSTROPHE}[A-Za-zøØ]{{2,}}", ELISION,                     # T'Pau
    rf"[A-Za-zøØ]+[aeiouyAEIOUY]{APOSTROPHE}[aeiouA-Z][A-Za-zøØ]*",          # ma'am
    rf"{APOSTROPHE}(?i:n{APOSTROPHE}?|em|till?|cause)|{APOSTROPHE}[2-9]0s|(?i:cap{APOSTROPHE}n|c{APOSTROPHE}est)",
    rf"[dDjJlL]{APOSTROPHE}|[yY]{APOSTROPHE}(?=[A-Za-z])|(?:somethin|Dunkin|ol){APOSTROPHE}",
    r"(?i:c'mon|e'er|li'l)|cont'd\.|nor'easter|s'mores|ev'ry|nat'l",
))
PART = rf"(?:[dDoOlL]{APOSTROPHE})?{A}+"
COMPOUND = rf"{PART}(?:[-_‐]{PART})+"                                        # family-friendly, Jeanne-d'Arc
LOOSE_COMPOUND = r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\u00ad]+))+"  # i.e.kid-friendly
URL_END = any_of("com net org edu gov mil info biz")
PATH = r"/[^ \t\n\u00a0\"<>|(){}]+[^ \t\n\u00a0\"<>|.!?(){},;:'-]"


# ---------------------------------------------------------------- the rules

def without_spaces(text: str) -> list[str]:
    return [re.sub("[ \n]", "\u00a0", text)]


def straight(text: str) -> list[str]:
    """Curly apostrophes become straight, though not in all words: don’t -> do n't, but rock ’n’ roll."""
    return [text.replace("’", "'")]


def brackets_as_words(text: str) -> str:
    return text.replace("(", "-LRB-").replace(")", "-RRB-")


REPLACED = {
    "&lt;": "<", "&LT;": "<", "&gt;": ">", "&GT;": ">", "&amp;": "&", "&AMP;": "&",
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "£": "#", "¢": "cents", "¤": "$", "€": "$",
    "(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-",
}


def rule(token: str, emit: Callable[[str], list[str]] = lambda text: [text], ahead: str = "") -> tuple:
    """A pattern that matches a token as group 1 and, after it, what the rule looks ahead to; and what writes the tokens."""
    return re.compile(f"({token}){ahead}"), emit


RULES = (
    rule(rf"{TAG}|<[!?][A-Za-z-][^>\n]*>", without_spaces),
    rule("&(?:MD|mdash|ndash);", lambda _: ["--"]),
    rule("&nbsp;", lambda _: []),
    # contractions
    rule("(?i:cannot|gonna|gotta|lemme|gimme|wanna)", lambda text: [text[:3], text[3:]]),
    rule("'(?i:t)", ahead="(?i:is|was)"),
    rule(r"[A-Za-z]*[A-MO-Za-mo-z]", ahead=rf"(?i:n{APOSTROPHE}t)"),
    rule(rf"(?i:n{APOSTROPHE}t)", straight),
    rule(WORD, ahead=rf"{APOSTROPHE}(?i:s|d|m|re|ve|ll)"),
    rule("'(?i:s|d|m|re|ve|ll)", ahead="[^A-Za-z]"),
    rule("'(?i:s|d|m)"),
    rule("’(?i:s|d|m|re|ve|ll)", straight),
    rule("'(?i:tis|twas)", lambda text: [text[:2], text[2:]]),
    rule(WHOLE_WITH_APOSTROPHE),
    rule(rf"{APOSTROPHE}[0-9][0-9]", ahead=SPACE_OR_LINE),
    # addresses
    rule(r"(?i:https?://)[^ \t\n\u00a0\"<>|(){}]+[^ \t\n\u00a0\"<>|.!?(){},;:'-]"),
    rule(rf"www\.(?:[A-Za-z0-9_-]+\.)+(?:{URL_END}|co\.uk)(?:{PATH})?(?!{A})"),
    rule(rf"(?:[A-Za-z0-9]+\.)+{URL_END}(?:{PATH})?(?!{A})"),
    rule(r"<?[A-Za-z0-9][^ \t\n\r\"|()<>\u00a0]*@(?:[^ \t\n\r\"|()<>.\u00a0]+\.)*[^ \t\n\r\"|()<>.\u00a0]+>?"),
    rule(r"@[A-Za-z_][A-Za-z_0-9]*"),
    rule(rf"#{L}+"),
    # words and abbreviations
    rule(WORD),
    rule(rf"{A}+"),
    rule(CLOSING_ABBREVIATION, lambda text: [text, "."], rf"(?:{NEW_SENTENCE}|\Z)"),
    rule(CLOSING_ABBREVIATION, ahead=r"[\s\S]{2}"),
    rule(CLOSING_ABBREVIATION),
    rule(rf"{ACRONYM}\.", lambda text: [text, "."], FIRST_WORD_AHEAD),
    rule(r"[A-Za-z]\.", lambda text: [text[:-1], "."], FIRST_WORD_AHEAD),
    rule(rf"(?:{ACRONYM}|[A-Za-z])\."),
    rule(TITLE_ABBREVIATION),
    rule(NUMBER_ABBREVIATION, ahead=f"{SPACE_OR_LINE}?{D}"),
    # compounds
    rule(COMPOUND),
    rule(LOOSE_COMPOUND),
    rule(rf"(?:{WORD}|{A}+|{ELISION}|{COMPOUND}|{LOOSE_COMPOUND}|{NUMBER})\.", ahead="[,;:]"),
    rule(r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),
    rule("[A-Z]+(?:&(?:amp;)?[A-Z]+)+|S&P-[0-9]+", lambda text: [text.replace("&amp;", "&")]),
    rule(r"[A-Z]+\+[A-Z]+"),
    rule(r"[Cc]\+\+|[CcFf]#"),
    # numbers
    rule(rf"[-+]?{NUMBER}"),
    rule(rf"{D}{{1,2}}[-/]{D}{{1,2}}[-/]{D}{{2,4}}"),
    rule(rf"(?:{D}{{1,4}}[- \u00a0])?{D}{{1,4}}(?:\\?/|⁄){D}{{1,4}}", without_spaces),
    rule(r"(?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])[0-9]{3,4}[- \u00a0]?"
         r"[0-9]{3,5}", lambda text: without_spaces(brackets_as_words(text))),
    rule(r"[A-Z]*\$"),
    rule("|".join(map(re.escape, REPLACED)), lambda text: [REPLACED.get(text, "$")]),  # what else looks like a euro is one
    # punctuation
    rule(rf"\.\.\.+|\.(?:{SPACE}\.){{2,}}|…", lambda _: ["..."]),
    rule("-----+"),
    rule("---?-?|–", lambda _: ["--"]),
    rule("[?!]+"),
    rule("-(?i:[lr][rcs]b)-"),
    rule(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", lambda text: [brackets_as_words(text)], "[^A-Za-z0-9]"),  # smileys
    rule("[-^=~<>']_[-^=~<>']"),
    rule("\"|&quot;", lambda _: ["``"], f"(?={A})"),
    rule("\"|&quot;|''|’’", lambda _: ["''"]),
    rule("``|‘‘|“", lambda _: ["``"]),
    rule("”", lambda _: ["''"]),
    rule("'", lambda _: ["`"], r"[A-Za-z][^ \t\n\u00a0]"),
    rule("[`‘]", lambda _: ["`"]),
    rule("['’]", lambda _: ["'"]),
    rule(r"[-.,;:]"),
    rule(rf"\*+|_+|#+|@+|<<|>>|[~^|\\/%&+=<>$]|{SYMBOL}|{MARK}"),
)


# ---------------------------------------------------------------- the lexer

# Pieces of text that always have the same tokens, with what must be known of what follows. All end in a space or line
# end. A rule looks beyond that only after a tag, a period or a number: without these the piece alone decides; with a
# period or number so does the next character if it is a letter, unless a single letter with a period is among them.
INSIDE = r" \t\n\u00a0\x00<"
PIECE = re.compile(rf"([^{INSIDE}.0-9٠]+[ \n])")
PIECE_BEFORE_LETTER = re.compile(rf"(?![^{INSIDE}]*(?<![A-Za-z0-9])[A-Za-z]\.)([^{INSIDE}]+[ \n])[A-Za-z]")


def tokenize(text: str) -> Iterator[str]:
    """The tokens of a text in the original's case; a line end is the token "\\n"."""
    shape = text.translate(SHAPES)
    known: dict[str, list[str]] = {}
    position = 0
    while position < len(text):
        piece = PIECE.match(shape, position) or PIECE_BEFORE_LETTER.match(shape, position)
        if not piece:
            tokens, position = next_tokens(text, shape, position)
            yield from tokens
            continue
        key = text[position:piece.end()]
        if key not in known:
            known[key] = []
            while position < piece.end(1):
                tokens, position = next_tokens(text, shape, position)
                known[key] += tokens
        yield from known[key]
        position = piece.end(1)


def next_tokens(text: str, shape: str, position: int) -> tuple[list[str], int]:
    """What the rule with the longest match at this position emits, and where to go on."""
    character = shape[position]
    if character in " \t\n\u00a0\x00":
        return (["\n"] if character == "\n" else []), position + 1
    longest, end, longest_emit = 0, position + 1, lambda text: []
    for pattern, emit in RULES:
        match = pattern.match(shape, position)
        if match and match.end() > longest:
            longest, end, longest_emit = match.end(), match.end(1), emit
    return [token.replace("\u00ad", "") or "-" for token in longest_emit(text[position:end])], end


def ptb_words(texts: list[str]) -> list[str]:
    """What METEOR, ROUGE-L and CIDEr read of each text: its lower-case tokens but for punctuation, joined by spaces."""
    lines: list[list[str]] = [[]]
    for token in tokenize("\n".join(texts)):
        if token == "\n":
            lines.append([])
        elif token.lower() not in PUNCTUATION:
            lines[-1].append(token.lower())
    return [" ".join(words) for words in lines]


def ptb_words_of_groups(groups: list[list[str]]) -> list[list[str]]:
    """The same of references. All are one text to the tokenizer, since it looks across line ends."""
    return kept_groups(groups, [Path(__file__).read_bytes()], ptb_words)
