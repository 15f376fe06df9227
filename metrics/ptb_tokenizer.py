"""Penn Treebank tokens as the E2E scorer makes them: what METEOR, ROUGE-L and CIDEr read.

The scorer runs a Java lexer over all texts at once, lower-cases the tokens and drops plain punctuation:

    "The Vaults isn't cheap, it's £20-25 (high-end)."  ->  the vaults is n't cheap it 's # 20-25 -lrb- high-end -rrb-

This is a lexer of the same behaviour, written from a description of it and from its output. At every position all
RULES are tried; the longest match wins, and of equally long ones the first. A rule may look ahead: what it sees after
the token counts for the length but is read again. Case matters: "Jan." is a month, "in." is not.

So that a rule need not know 60,000 characters, it is matched against the shape of the text: the same text with every
character outside ASCII replaced by one of a few stand-ins, so that positions stay the same.
Left out: which letters and signs of later Unicode versions the original does not know yet (it drops them).
"""
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from metrics.texts import kept_groups

# Dropped after tokenisation, exactly these. Brackets are not among them: by then they are lower-case, -lrb- and so on.
PUNCTUATION = frozenset("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;".split())

# ---------------------------------------------------------------- shapes of characters

LOWER, UPPER, MARK, DIGIT, SYMBOL, NOTHING, WIDE, ENTITY = "øØ\u0301٠¬\x00\u2003\u0300"
KEPT = "\u00a0\u00ad¢£¤¼½¾⁄⅓⅔€…‘’“”„‹›–‐²₂"                                        # characters with a rule of their own
STAND_INS = {
    "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u3000": WIDE,
    "\u0091‛": "‘", "\u0092": "’", "\u0093«": "“", "\u0094»": "”", "‚‟": "„",
    "\u0096\u0097—―": "–", "\u058a‑": "‐", "\u0080₠": "€", "⁰¹³⁴⁵⁶⁷⁸⁹": "²", "₀₁₃₄₅₆₇₈₉": "₂",
}
SYMBOLS = re.compile("[\u00a1\u00a5-\u00bf\u00d7\u00f7\u037e\u0387\u2016-\u2023\u2030-\u203b\u203e-\u2042\u2070\u2071"
                     "\u2074-\u208e\u20a4\u2100-\u214f\u2153-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff65\uffe0\uffe1"
                     "\uffe5\uffe6]")
CATEGORIES = {"Lu": UPPER, "Lt": UPPER, "Ll": LOWER, "Lm": LOWER, "Lo": LOWER, "Nd": DIGIT}
ENTITY_LETTER = re.compile("&[aeiouAEIOU](?i:acute|grave|uml);")             # &eacute; is one letter to the original


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


def shape_of(text: str) -> str:
    shape = text.translate(SHAPES)
    return ENTITY_LETTER.sub(lambda match: ENTITY * len(match[0]), shape) if "&" in shape else shape


# ---------------------------------------------------------------- pieces of patterns

S = "[ \t\u00a0\u2003]"                                                      # space
SN = "[ \t\n\u00a0\u2003]"                                                   # space or line end
CAPITAL = "[A-ZØ]"
LETTER = "[A-Za-zøØ]"
L = "[A-Za-zøØ\u0300\u0301\u00ad]"                                           # what counts as a letter inside a word
LD = "[A-Za-z0-9øØ٠\u0300\u0301\u00ad]"
A = "[A-Za-z0-9øØ٠]"                                                         # letter or digit
D = "[0-9٠]"
APOS = "(?:['’]|&(?i:apos);)"
TICK = "(?:['’‘`]|&(?i:apos);)"                                              # in isn`t too
WORD = rf"{L}{LD}*(?:[.!?]{L}{LD}*)*"                                        # centre.It
NUMBER = rf"(?:{D}*(?:[.,:\u00ad٫٬]{D}+)+|{D}+)"
NAME = "[A-Za-z][A-Za-z0-9:._-]*"
TAG = rf"""<(?:[!?][A-Za-z-][^>\n]*|/{NAME} *|{NAME}(?: +{NAME}(?: *= *(?:'[^'\n]*'|"[^"\n]*"))?)* */? *)>"""


def any_of(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


# A sentence may end before these: white space and a capital; white space and one of the usual first words
NEW_SENTENCE = rf"{SN}(?:{SN}|{CAPITAL}|{TAG})"
FIRST_WORD = "(?:" + "|".join(
    f"{word[0]}(?i:{word[1:]})" for word in """A About According Additionally After An As At But Earlier He Her Here However If
    In It Last Many More Now Once One Other Our She Since So Some Such That The Their Then There These They This We What
    When While Yet You""".split()) + r"|M(?i:[rs]\.))"
FIRST_WORD_AHEAD = rf"{SN}+(?:{FIRST_WORD}|{TAG}){SN}"

# Abbreviations: those in which only the first letter may be a capital or must be one, then those in any case
CLOSING_ABBREVIATION = (
    "(?:" + any_of("Ark ARK AZ Az Del DEL Ill ILL La LA Mass MASS Miss MISS Ore ORE Pa PA Tex TEX Wash WASH") + "|(?i:"
    + any_of("""al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc
    ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla
    penn plc rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo ph\\.d
    ed\\.d""") + r")|(?i:pt)[ye](?i:s)?)\.")
TITLE_ABBREVIATION = "(?:(?i:" + any_of("""adj adm adv alex assoc asst attys? ave brig capt cf cie cmdr col comdr cpl dept
    det drs? elec ens ft gen govs? hon insp invt jos lieut lt maj messrs mlle mme mrs? ms msgr mt natl pfc ph
    pres profs? pvt reps? rev sens? sfc sgt spc ste? supts? treas vs wm""") + r")|[Mm][ft][Gg])\."
NUMBER_ABBREVIATION = "(?i:" + any_of("art ca figs? nos? op pp prop") + r")\."
INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"
ACRONYM = (rf"(?:{INITIALS}|(?i:canada|sino|korean|eu|japan|non)-(?i:u\.s)|(?i:u\.s\.-(?:u\.k|u\.s\.s\.r)))")

HYPHEN = "[-_‐]"
PART = rf"(?:[dDoOlL]{TICK}{A})?{A}+"
COMPOUND = rf"{PART}(?:{HYPHEN}{PART})*"                                     # family-friendly, Jeanne-d'Arc, O'Neil
LOOSE_COMPOUND = rf"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{INITIALS}\.|[A-Za-z0-9\u00ad]+))+"  # i.e.kid-friendly
AMPERSAND = "&(?:(?i:amp);)?"
ALL_CAPITALS = rf"[A-Z]+(?:(?:\+|{AMPERSAND})[A-Z]+)+"
DOMAIN_END = any_of("com net org edu")
FILE_END = any_of("""bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt
    ps py sql tar txt wav x xml zip""")
LAST = r"[^ \t\n\"<>|.!?(){},-]"                                             # of an address
PATH = rf"/[^ \t\n\"<>|()]+{LAST}"
HOST = r"[^ \t\n\"|()<>{}\u00a0.]"                                          # of an e-mail address
EYE = "[-^x=~<>']"


# ---------------------------------------------------------------- the rules

def as_it_is(text: str) -> list[str]:
    return [text]


def whole(text: str) -> list[str]:
    """Without soft hyphens; one that is all alone is a hyphen."""
    return [text.replace("\u00ad", "") or "-"]


def plain(text: str) -> list[str]:
    """A word, in which & and ' may be written as entities."""
    return [re.sub("(?i)&apos;", "'", re.sub("(?i)&amp;", "&", text)).replace("\u00ad", "")]


def straight(text: str) -> list[str]:
    return [re.sub("&apos;|[’\u0092]", "'", text)]


def without_spaces(text: str) -> list[str]:
    return [re.sub("[ \n]", "\u00a0", text)]


def brackets_as_words(text: str) -> str:
    return text.replace("(", "-LRB-").replace(")", "-RRB-")


def quotes(text: str) -> list[str]:
    for character, token in (("\u0091‘‛‹", "`"), ("\u0092’›", "'"), ("\u0093“«", "``"), ("\u0094”»", "''")):
        text = re.sub(f"[{character}]", token, text)
    return straight(text)


REPLACED = {
    "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "£": "#", "¢": "cents", "¤": "$", "€": "$",
    "(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-",
}


def rule(token: str, emit: Callable[[str], list[str]] = as_it_is, ahead: str = "") -> tuple:
    """A pattern that matches a token as group 1 and, after it, what the rule looks ahead to; and what writes the tokens."""
    return re.compile(f"({token}){ahead}"), emit


RULES = (
    rule("(?i:cannot|gonna|gotta|lemme|gimme|wanna)", lambda text: [text[:3], text[3:]]),
    rule("'(?i:t)", ahead="(?i:is|was)"),
    rule(TAG, without_spaces),
    rule("&(?i:md|mdash|ndash);|–", lambda _: ["--"]),
    rule("&(?i:amp);", lambda _: ["&"]),
    rule("&(?:(?i:ht|tl|ur|lr|qc|ql|qr|odq|cdq)|#[0-9]+);"),
    rule("&(?i:nbsp);", lambda _: []),
    # words and contractions
    rule(WORD, whole, rf"{APOS}(?i:[sdm]|re|ve|ll)"),
    rule("[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*", whole, rf"(?i:n{TICK}t)"),
    rule(WORD, whole),
    rule(rf"{APOS}(?i:n){APOS}?|[dDjJlL]{APOS}|(?i:dunkin|somethin|ol){APOS}"),
    rule(rf"{APOS}(?:(?i:em|till?|cause)|[2-9]0(?i:s))|(?i:o{APOS}o|c{TICK}mon|cont'd\.|nor'easter|e'er|s'mores|ev'ry|li'l|nat'l)"),
    rule(rf"{LETTER}+[aeiouyAEIOUY]{TICK}[aeiouA-Z]{LETTER}*"),               # ma'am
    rule(rf"[A-HJ-XZn]{TICK}{LETTER}{{2,}}"),                                # T'Pau
    rule(rf"(?i:y){APOS}", ahead=LETTER),
    rule(rf"(?i:https?)://[^ \t\n\"<>|(){{}}]+{LAST}"),
    rule(rf"(?i:www)\.(?:[^ \t\n\"<>|.!?(){{}},]+\.)+[A-Za-z]{{2,4}}(?:{PATH})?"),
    rule(rf"(?:[^ \t\n\"`'<>|.!?(){{}},-_$\u0300]+\.)+(?i:{DOMAIN_END})(?:{PATH})?"),
    rule(rf"(?:<|&(?i:lt);)?[A-Za-z0-9](?:{HOST}|\.)*@(?:{HOST}+\.)*{HOST}+(?:>|&(?i:gt);)?"),
    rule(rf"@[A-Za-z_][A-Za-z_0-9]*|#{L}+"),
    rule(rf"{APOS}(?i:[sdm]|re|ve|ll)", straight, "[^A-Za-z]"),
    rule(rf"(?i:n{TICK}t)", lambda text: quotes(text)),
    # numbers
    rule(rf"{D}{{1,2}}[-/]{D}{{1,2}}[-/]{D}{{2,4}}"),
    rule(rf"[-+]?{NUMBER}", whole),
    rule("²+|₂+"),
    rule(rf"(?:{D}{{1,4}}[- \u00a0])?{D}{{1,4}}(?:\\?/|⁄){D}{{1,4}}", without_spaces),
    rule(rf"-(?i:[lr][rcs]b)-|(?i:c\.d\.s|pro-|anti-|s{AMPERSAND}p-500|s{AMPERSAND}ls|cap{APOS}n|c{APOS}est)", plain),
    rule(r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"),
    rule(r"[A-Z]*\$"),
    # abbreviations
    rule(CLOSING_ABBREVIATION, lambda text: [text, "."], rf"(?:{NEW_SENTENCE}|\Z)"),
    rule(CLOSING_ABBREVIATION, ahead=r"[\s\S]{2}"),
    rule(CLOSING_ABBREVIATION),
    rule(rf"{ACRONYM}\.", lambda text: [text, "."], FIRST_WORD_AHEAD),
    rule(r"[A-Za-z]\.", lambda text: [text[:-1], "."], FIRST_WORD_AHEAD),
    rule(rf"(?:{ACRONYM}|[A-Za-z])\."),
    rule(TITLE_ABBREVIATION),
    rule(ACRONYM, ahead=SN),
    rule(rf"{APOS}[0-9][0-9]", ahead=SN),
    rule(NUMBER_ABBREVIATION, ahead=f"{SN}?{D}"),
    rule(rf"{LD}+(?:\.{LD}+)*\.(?i:{FILE_END})", ahead=rf"(?:{SN}|[.?!,])"),
    rule(r"(?:\([0-9]{2,3}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0])[0-9]{3,4}[- \u00a0]?"
         r"[0-9]{3,5}", lambda text: without_spaces(brackets_as_words(text))),
    # compounds
    rule(rf"(?:{WORD}|{COMPOUND}|{LOOSE_COMPOUND}|{ALL_CAPITALS})\.", plain, "[,;:\u3001]"),
    rule(LOOSE_COMPOUND, whole),
    rule(COMPOUND),
    rule(ALL_CAPITALS, plain),
    rule(r"[Cc]\+\+|[CcFf]#"),
    # punctuation
    rule("\"|&quot;", lambda _: ["``"], "(?=[A-Za-z0-9$])"),
    rule("\"|&quot;", lambda _: ["''"]),
    rule("&(?i:quot);"),
    rule("|".join(map(re.escape, REPLACED)), lambda text: [REPLACED.get(text, "$")]),  # what else looks like a euro is one
    rule("&(?i:lt);", lambda _: ["<"]),
    rule("&(?i:gt);", lambda _: [">"]),
    rule("-----+"),
    rule("---?-?", lambda _: ["--"]),
    rule(r"\.{3,5}|(?:\.[ \u00a0]){2,4}\.|…", lambda _: ["..."]),
    rule(r"[?!]+|[-.,;:]|@+|#+|_+|\*+|(?:\\\*){1,3}"),
    rule("'", lambda _: ["`"], r"[A-Za-z][^ \t\n\u00a0]"),
    rule(rf"{APOS}(?i:[sdm]|re|ve|ll)", straight),
    rule(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", lambda text: [brackets_as_words(text)], "[^A-Za-z0-9]"),  # smileys
    rule(rf"{EYE}_{EYE}|\({EYE}[_.-]?{EYE}\)", lambda text: [brackets_as_words(text)]),
    rule("''|[`‘’“”„‹›]{1,2}|&(?i:apos);|'", quotes),
    rule(rf"<<|>>|[~^|\\/%&+=<>⁄]|{SYMBOL}"),
)


# ---------------------------------------------------------------- the lexer

# Pieces of text that always have the same tokens, with what must be known of what follows. All end in a space or line
# end. A rule looks beyond that only after a tag, a period or a number: without these the piece alone decides; with a
# period or number so does the next character if it is a letter, unless a single letter with a period is among them.
INSIDE = r" \t\n\u00a0\x00<\u2003"
PIECE = re.compile(rf"([^{INSIDE}.0-9٠]+[ \n])")
PIECE_BEFORE_LETTER = re.compile(rf"(?![^{INSIDE}]*(?<![A-Za-z0-9])[A-Za-z]\.)([^{INSIDE}]+[ \n])[A-Za-z]")


def tokenize(text: str) -> Iterator[str]:
    """The tokens of a text in the original's case; a line end is the token "\\n"."""
    shape = shape_of(text)
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
    if character in " \t\n":
        return (["\n"] if character == "\n" else []), position + 1
    longest, end, longest_emit = 0, position + 1, lambda text: []
    for pattern, emit in RULES:
        match = pattern.match(shape, position)
        if match and match.end() > longest:
            longest, end, longest_emit = match.end(), match.end(1), emit
    return longest_emit(text[position:end]), end


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
