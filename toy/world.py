"""The Lantern Isles: a small made-up world that writes its own pretraining text and its own task data.

A thing of this world (a boat, a tower, a workshop, a garden, a fair) is a list of attributes and values. Values are put
together from words and syllables, so that a test record is full of values that no training record holds: a model has to
copy them. Every fact can be told in two styles, a plain and a lively one. The pretraining text knows both, and lists of
facts that are restated in the plain one; the records of the record-to-text task, their restating in the lively style, and
labelled pairs are left to the tasks, which come in the real ones' files:

    e2e/{train,valid,test}.txt                        record || reference text, several references per record
    glue/MRPC/{train,dev}.tsv                         do two texts say the same?
    glue/MNLI/{train,dev_matched,dev_mismatched}.tsv  entailment, neutral or contradiction; mismatched: other kinds

    python toy/world.py --out toy/data

Left out: typing errors, and whatever would take more than reading the text to know.
"""
import argparse
import random
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from files import cli

# -------------------------------------------------------------------- words and names

def words(text: str) -> list[str]:
    return text.split()


FIRST_NAMES = words("Ada Bela Bo Cato Dora Edda Emil Fenna Greta Hanno Ida Ilse Ivo Jorun Kaja Lasse Lena Milo Mira Nils "
                    "Nora Olaf Oda Pia Rasmus Rike Runa Sanna Sven Tilda Timo Tove Ulla Vera Wanda Yrsa")
SURNAME_STARTS = words("Alm Bar Cor Dal Eber Fal Gor Hed Ing Jar Kel Lind Mor Nor Os Per Quist Rav Sten Tol Ul Vand Wes Zell")
SURNAME_ENDS = words("berg sen ven rick dahl man qvist ström wick low mark hart feld ley")
TOWN_STARTS = words("Ash Birch Brack Crab Drift Elder Esk Fen Fox Gale Gull Hollow Kelp Lark Marsh Mist Ner Oster Pebble "
                    "Raven Salt Seal Skerry Tarn Thorn Wester Whale Yarrow")
TOWN_ENDS = words("by bridge cliff combe fell ford haven holm mouth ness port sound stead strand thorpe vik wall wick")
ADJECTIVES = words("Amber Bold Brave Copper Crooked Dancing Distant Early Gentle Golden Happy Hidden Humming Iron Lazy Little "
                   "Lonely Lucky Merry Proud Quiet Rusty Silver Sleepy Velvet Wandering Wild Winter")
ANIMALS = words("Badger Beetle Cormorant Crane Curlew Dolphin Falcon Goose Hare Heron Lobster Magpie Marten Moth Osprey Otter "
                "Pike Puffin Robin Salmon Sparrow Starling Swallow Tern Turtle Walrus Weasel Wren")
PLANTS = words("Alder Bramble Cherry Clover Fennel Hazel Ivy Juniper Lavender Maple Medlar Mint Mulberry Nettle Pear Plum "
               "Poppy Quince Rowan Sorrel Thistle Walnut Willow")
SHADES = words("bright dark deep dusty faded light pale rich soft warm")
HUES = words("blue brown crimson green grey ivory orange pink purple red violet white yellow")
WOODS = words("ash beech birch cedar cypress elm larch maple oak pine spruce steel teak iron")
STONES = words("brick chalk clay cobble concrete flint granite limestone marble pebbles sandstone slate timber turf")
QUALITIES = words("blue brass carved cheap copper dried fine glass heavy old painted rare salted silver small striped")
GOODS = words("apples barrels baskets bells blankets bottles buttons candles clocks cups drums flutes honey kites lamps lemons "
              "letters maps nets onions pears ropes seeds shells spoons tea timber tiles toys wool")
SEASONS = words("spring summer autumn winter March April May June July August September October")

Draw = Callable[[random.Random], str]


def draws(form: str, *vocabularies: list[str]) -> Draw:
    """A drawing of one word from each vocabulary, put into a form: draws("The {} {}", ADJECTIVES, ANIMALS)."""
    return lambda rng: form.format(*(rng.choice(vocabulary) for vocabulary in vocabularies))


def number(low: int, high: int, unit: str = "") -> Draw:
    return lambda rng: f"{rng.randint(low, high)}{unit}"


person = draws("{} {}{}", FIRST_NAMES, SURNAME_STARTS, SURNAME_ENDS)                     # 12,096 of them
town = draws("{}{}", TOWN_STARTS, TOWN_ENDS)                                             # 504
colour = draws("{} {}", SHADES, HUES)
goods = draws("{} {}", QUALITIES, GOODS)
season = draws("{} {}", words("early mid late"), SEASONS)
boat_name = draws("The {} {}", ADJECTIVES, ANIMALS)
tower_name = draws("{}{} {}", TOWN_STARTS, TOWN_ENDS, words("Light Point Head Rock"))
workshop_name = draws("{}{} and {}", SURNAME_STARTS, SURNAME_ENDS, words("Sons Daughters Friends Sisters Brothers"))
garden_name = draws("{} {}", PLANTS, words("Hollow Terrace Yard Bank Acre Patch Slope"))
fair_name = draws("{} {} {}", ADJECTIVES, PLANTS, words("Days Week Night"))


def any_name(rng: random.Random) -> str:
    return rng.choice([boat_name, tower_name, workshop_name])(rng)


# -------------------------------------------------------------------- what can be said

@dataclass(frozen=True)
class Attribute:
    """How the values of one attribute are drawn, and how they are told in the plain style of the pretraining text and in
    the lively style of the tasks: as predicates ("is painted {}") and as phrases that follow a noun ("painted {}")."""

    draw: Draw
    plain: tuple[str, ...]
    plain_phrases: tuple[str, ...]
    lively: tuple[str, ...]
    lively_phrases: tuple[str, ...]


def attribute(draw, plain: str, plain_phrases: str, lively: str, lively_phrases: str) -> Attribute:
    """An Attribute from strings that hold their alternatives separated by " / "."""
    return Attribute(draw, *(tuple(text.split(" / ")) for text in (plain, plain_phrases, lively, lively_phrases)))


def by(verb_phrase: str, noun: str, lively: str, lively_phrase: str) -> Attribute:
    """An attribute whose value is the person who does something for the thing."""
    return attribute(person, f"is {verb_phrase} by {{}} / has {{}} as its {noun} / is in the hands of {{}}",
                     f"{verb_phrase} by {{}} / with {{}} as its {noun}", lively, lively_phrase)


ATTRIBUTES = {
    "colour": attribute(colour, "is painted {} / has {} paint / is {} in colour", "painted {} / in {} paint",
                        "shines in {} / wears a coat of {}", "dressed in {} / glowing in {}"),
    "town": attribute(town, "is in {} / stands in {} / belongs to the town of {}", "in {} / in the town of {}",
                      "awaits you at {} / makes {} proud", "right at {} / over at {}"),
    "harbour": attribute(town, "is moored in {} / lies in the harbour of {} / has its berth in {}",
                         "moored in {} / from the harbour of {}", "calls {} its home / rests at {}",
                         "at home in {} / straight out of {}"),
    "captain": by("sailed", "captain", "obeys {} / follows the orders of {}", "under Captain {} / with {} at the helm"),
    "keeper": by("kept", "keeper", "is looked after by {} / depends on {}", "in the care of {} / watched over by {}"),
    "master": by("run", "master", "thrives under {} / owes its fame to {}", "led by {} / where {} is in charge"),
    "gardener": by("tended", "gardener", "flourishes under {} / is the joy of {}", "nursed by {} / loved by {}"),
    "host": by("hosted", "host", "is opened by {} / welcomes you with {}", "led in by {} / called together by {}"),
    "year": attribute(number(1710, 1989), "was built in {} / was finished in the year {} / has existed since {}",
                      "built in {} / from the year {}", "goes back to {} / has been a sight since {}",
                      "dating from {} / around since {}"),
    "length": attribute(number(5, 89, " metres"), "is {} long / has a length of {} / measures {} in length",
                        "{} long / with a length of {}", "stretches over {} / spans all of {}",
                        "stretching {} / no shorter than {}"),
    "height": attribute(number(5, 89, " metres"), "is {} high / has a height of {} / measures {} in height",
                        "{} high / with a height of {}", "rises to {} / reaches up {}", "rising {} / towering {}"),
    "hull": attribute(draws("{}", WOODS), "has a hull of {} / was built from {} / is made of {}", "made of {} / built from {}",
                      "shows off its {} / is all {}", "of solid {} / of the finest {}"),
    "walls": attribute(draws("{}", STONES), "has walls of {} / was raised in {} / consists of {}",
                       "with walls of {} / raised in {}", "is proud of its {} / stands firm in {}",
                       "clad in {} / of honest {}"),
    "cargo": attribute(goods, "carries {} / is loaded with {} / transports {}", "loaded with {} / that carries {}",
                       "brings you {} / is full of {}", "full of {} / heavy with {}"),
    "goods": attribute(goods, "makes {} / produces {} / is known for {}", "that makes {} / known for {}",
                       "tempts you with {} / turns out {}", "famous for {} / full of {}"),
    "prize": attribute(goods, "gives {} as a prize / has {} for the winner / offers {} to the winner",
                       "with {} as a prize / with {} for the winner", "rewards you with {} / lets you win {}",
                       "where you win {} / all about {}"),
    "fruit": attribute(draws("{} {}", QUALITIES, [plant.lower() for plant in PLANTS]),
                       "grows {} / is planted with {} / is a place for {}", "planted with {} / that grows {}",
                       "spoils you with {} / bursts with {}", "rich in {} / bursting with {}"),
    "season": attribute(season, "is open in {} / can be visited in {} / opens in {}", "open in {} / that opens in {}",
                        "is best seen in {} / is at its finest in {}", "for your {} trip / to enjoy in {}"),
    "fee": attribute(number(2, 60, " coins"), "costs {} / has a fee of {} / can be visited for {}",
                     "with a fee of {} / for a price of {}", "asks only {} / is yours for {}",
                     "at just {} / for no more than {}"),
    "near": attribute(any_name, "is near {} / is next to {} / is close to {}", "near {} / next to {}",
                      "has {} for a neighbour / is a few steps from {}", "a stone's throw from {} / hard by {}"),
}


@dataclass(frozen=True)
class Kind:
    noun: str
    types: list[str]
    attributes: list[str]
    draw_name: Draw


def kind(noun: str, types: str, attributes: str, draw_name: Draw) -> Kind:
    return Kind(noun, types.split(", "), attributes.split(), draw_name)


MAIN_KINDS = (
    kind("boat", "ferry, barge, cutter, trawler, tugboat, schooner, houseboat, steamer, fishing boat, mail boat",
         "colour harbour captain year length hull cargo near", boat_name),
    kind("tower", "lighthouse, bell tower, watchtower, clock tower, water tower, windmill, signal tower",
         "colour town keeper year height walls season fee near", tower_name),
    kind("workshop", "pottery, bakery, smithy, printing house, weaving mill, glassworks, boatyard, brewery",
         "colour town master year walls goods near", workshop_name),
)
OTHER_KINDS = (
    kind("garden", "orchard, vineyard, herb garden, rose garden, tea garden, kitchen garden, nursery",
         "town gardener year fruit season fee near", garden_name),
    kind("fair", "lantern fair, boat race, kite fair, night market, harvest feast, choir week, book market",
         "town host season fee prize near", fair_name),
)
ALL_KINDS = MAIN_KINDS + OTHER_KINDS

Thing = dict[str, str]  # attribute -> value, in the order in which they are told; the first two are name and type


def make_thing(rng: random.Random, kinds: tuple[Kind, ...], facts: int, may_use=lambda name: True) -> tuple[Kind, Thing]:
    """A thing with a name for which may_use holds, a type and `facts` attributes."""
    kind = rng.choice(kinds)
    while not may_use(name := kind.draw_name(rng)):
        pass
    thing = {"name": name, "type": rng.choice(kind.types)}
    for key in rng.sample(kind.attributes, facts):
        while (value := ATTRIBUTES[key].draw(rng)) in thing.values():
            pass
        thing[key] = value
    return kind, thing


def other_value(rng: random.Random, kind: Kind, key: str, value: str) -> str:
    """Another value that this attribute could have had."""
    draw = {"name": kind.draw_name, "type": lambda rng: rng.choice(kind.types)}.get(key) or ATTRIBUTES[key].draw
    while (other := draw(rng)) == value:
        pass
    return other


# -------------------------------------------------------------------- prose

def a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def facts_of(thing: Thing) -> list[tuple[str, str]]:
    return [(key, value) for key, value in thing.items() if key not in ("name", "type")]


def say(rng: random.Random, wording: str, key: str, value: str) -> str:
    """One fact in words; wording is one of Attribute's four fields."""
    return rng.choice(getattr(ATTRIBUTES[key], wording)).format(value)


def plain_text(rng: random.Random, thing: Thing) -> str:
    """All of a thing's facts in the plain style, in a random order, in one to four sentences."""
    facts = facts_of(thing)
    rng.shuffle(facts)
    name, type_ = thing["name"], thing["type"]
    opening = rng.choice((f"{name} is {a(type_)}", f"there is {a(type_)} called {name}", f"{a(type_)} has the name {name}"))
    if facts and opening.startswith(name) and rng.random() < 0.5:
        opening += " " + say(rng, "plain_phrases", *facts.pop())
    elif facts and rng.random() < 0.5:
        opening = f"the {type_} {name} {say(rng, 'plain', *facts.pop())}"
    sentences = [opening]
    while facts:
        both = [say(rng, "plain", *facts.pop()) for _ in range(min(len(facts), rng.choice((1, 2))))]
        sentences.append("it " + " and ".join(both))
    return " ".join(capital(sentence) + "." for sentence in sentences)


def lively_text(rng: random.Random, thing: Thing) -> str:
    """All of a thing's facts in the lively style of the record-to-text task, in one to three sentences."""
    facts = facts_of(thing)
    rng.shuffle(facts)
    name, type_ = thing["name"], thing["type"]
    first = say(rng, "lively_phrases", *facts.pop())
    plan = rng.randrange(4) if facts else rng.choice((0, 1))
    if plan == 0:
        opening = f"Come and see {name}, {a(type_)} {first}!"
    elif plan == 1:
        opening = f"No {type_} on the isles is like {name}, {first}."
    elif plan == 2:
        opening = f"Looking for {a(type_)} {first}? {name} {say(rng, 'lively', *facts.pop())}."
    else:
        opening = f"{capital(first)}, {name} {say(rng, 'lively', *facts.pop())}, a true {type_}."
    rest = [say(rng, "lively", key, value) for key, value in facts]
    if len(rest) > 1:
        rest = [", ".join(rest[:-1]) + " and " + rest[-1]]
    return " ".join([opening, *(f"It {text}." for text in rest)])


def any_text(rng: random.Random, thing: Thing) -> str:
    return rng.choice((plain_text, lively_text))(rng, thing)


# -------------------------------------------------------------------- pretraining text

NOTATIONS = (("{key}: {value}", "; "), ("{key} = {value}", ", "), ("{key} : {value}", "\n"), ("{value}", " | "),
             ("{key} {value}", ", "), ('"{key}": "{value}"', ", "), ("{value} ({key})", " / "), ("* {key} {value}", "\n"))


def fact_list(rng: random.Random, thing: Thing) -> str:
    """The facts of a thing as data, in one of several notations; none of them is the record-to-text task's."""
    items = list(thing.items())
    if rng.random() < 0.5:
        rng.shuffle(items)
    form, separator = rng.choice(NOTATIONS)
    return separator.join(form.format(key=key, value=value) for key, value in items)


def prose_document(rng: random.Random) -> str:
    """One thing, described once."""
    return any_text(rng, make_thing(rng, ALL_KINDS, rng.randint(2, 5))[1])


def list_document(rng: random.Random) -> str:
    """A list of facts restated in plain prose, or prose summed up as a list."""
    _, thing = make_thing(rng, ALL_KINDS, rng.randint(1, 5))
    parts = [fact_list(rng, thing), plain_text(rng, thing)]
    if rng.random() < 0.25:
        parts.reverse()
    return "\n".join(parts)


def retelling_document(rng: random.Random) -> str:
    """A description taken up again fact by fact: confirmed, doubted or added to, as the connecting word says."""
    kind, thing = make_thing(rng, ALL_KINDS, rng.randint(3, 5))
    facts = facts_of(thing)
    told = dict(list(thing.items())[:-2])
    sentences = [any_text(rng, told)]
    for key, value in rng.sample(facts, rng.randint(2, min(4, len(facts)))):
        subject = rng.choice(("it", thing["name"]))
        if key not in told:
            connective = rng.choice(("Also,", "Besides,", "Moreover,", f"{person(rng)} added that"))
        elif rng.random() < 0.5:
            connective = rng.choice(("Indeed,", "Truly,", "Yes,", f"{person(rng)} agreed that"))
        else:
            connective = rng.choice(("Yet", "But", "No,", f"{person(rng)} objected that"))
            value = other_value(rng, kind, key, value)
        sentences.append(f"{connective} {subject} {say(rng, rng.choice(('plain', 'lively')), key, value)}.")
    return " ".join(sentences)


def witness_document(rng: random.Random) -> str:
    """Two people tell of the same thing in their own words; a closing sentence says how their stories compare."""
    kind, thing = make_thing(rng, ALL_KINDS, rng.randint(2, 3))
    first, second = person(rng), person(rng)
    retold = dict(thing)
    changed = rng.choice((None, rng.choice(list(thing))))
    if changed:
        retold[changed] = other_value(rng, kind, changed, thing[changed])
        closing = rng.choice((f"They disagree about the {changed}.", f"The {changed} is told differently.",
                              f"Their stories differ: {thing[changed]} here, {retold[changed]} there."))
    else:
        closing = rng.choice((f"They agree about the {rng.choice(list(thing))}.", "Everything is told alike.",
                              f"Their stories match: {rng.choice(list(thing.values()))} here and there."))
    return f"{first} says: {any_text(rng, thing)}\n{second} says: {any_text(rng, retold)}\n{closing}"


GENRES = {"prose": prose_document, "lists": list_document, "retellings": retelling_document, "witnesses": witness_document}


def pretraining_documents(count: int, seed: int = 0, genres: tuple[str, ...] = tuple(GENRES)) -> Iterator[str]:
    """`count` plain documents, the genres taking turns; a genre named twice has two turns."""
    rng = random.Random(f"pretraining {seed}")
    for index in range(count):
        yield GENRES[genres[index % len(genres)]](rng)


# -------------------------------------------------------------------- task data

def split_of(name: str) -> str:
    """The split of the record-to-text task that a thing's name belongs to; names are never shared between splits."""
    return {0: "valid", 1: "test"}.get(zlib.crc32(name.encode("utf-8")) % 8, "train")


def record(thing: Thing) -> str:
    return " | ".join(f"{key} : {value}" for key, value in thing.items())


def record_values(mr: str) -> list[str]:
    """The values of a record: "name : A | type : B" -> ["A", "B"]."""
    return [part.split(" : ", 1)[1] for part in mr.split(" | ")]


def value_share(mr: str, text: str) -> float:
    """The share, 0 to 1, of a record's values that a text holds word for word."""
    values = record_values(mr)
    return sum(value.lower() in text.lower() for value in values) / len(values)


def record_to_text(seed: int, split: str, records: int, references: int) -> list[str]:
    """Lines "record||text": `references` different texts for each of `records` records."""
    rng, lines = random.Random(f"e2e {split} {seed}"), []
    while len(lines) < records * references:
        _, thing = make_thing(rng, MAIN_KINDS, rng.randint(1, 4), lambda name: split_of(name) == split)
        texts = set()
        while len(texts) < references:
            texts.add(lively_text(rng, thing))
        lines += [f"{record(thing)}||{text}" for text in sorted(texts)]
    return lines


def paraphrase_pairs(seed: int, split: str, count: int) -> list[str]:
    """MRPC rows: label 1 where both texts tell the same facts, 0 where the second tells of another thing. One wrong fact
    among right ones is more than a base of this size learns to see from some thousand pairs."""
    rng, rows = random.Random(f"mrpc {split} {seed}"), []
    for index in range(count):
        _, thing = make_thing(rng, MAIN_KINDS, rng.randint(1, 3))
        label, other = index % 2, thing
        if not label:
            _, other = make_thing(rng, MAIN_KINDS, rng.randint(1, 3), lambda name, told=thing["name"]: name != told)
        rows.append((str(label), any_text(rng, thing), any_text(rng, other)))
    rng.shuffle(rows)
    return ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
            *(f"{label}\t{2 * index}\t{2 * index + 1}\t{first}\t{second}"
              for index, (label, first, second) in enumerate(rows))]


def hypothesis(rng: random.Random, kinds: tuple[Kind, ...], thing: Thing, label: str) -> str:
    """A text that retells a thing with a fact less, denies it, or tells of another thing, which says neither.

    Half of the last kind is a denial too, so that the words of denial alone do not give the label away, as they do in
    much of the real MNLI (Gururangan et al. 2018). A wrong value as a contradiction is beyond so small a base.
    """
    about = thing
    while label == "neutral" and about["name"] == thing["name"]:
        about = make_thing(rng, kinds, len(thing) - 2)[1]
    dropped = rng.choice(facts_of(about))[0]
    told = any_text(rng, {key: value for key, value in about.items() if key != dropped})
    denied = label == "contradiction" or label == "neutral" and rng.random() < 0.5
    return f"It is not true what they say: {told}" if denied else told


def inference_pairs(seed: int, split: str, count: int, kinds: tuple[Kind, ...]) -> list[str]:
    """MNLI rows: premise, hypothesis and one of three labels, a third of each."""
    rng, rows = random.Random(f"mnli {split} {seed}"), []
    for index in range(count):
        label = ("entailment", "neutral", "contradiction")[index % 3]
        _, thing = make_thing(rng, kinds, rng.randint(2, 3))
        rows.append((any_text(rng, thing), hypothesis(rng, kinds, thing, label), label))
    rng.shuffle(rows)
    return ["index\tsentence1\tsentence2\tgold_label",
            *(f"{index}\t{premise}\t{claim}\t{label}" for index, (premise, claim, label) in enumerate(rows))]


def task_files(seed: int = 0) -> dict[str, list[str]]:
    """Every file of the toy tasks: path below the output folder -> its lines."""
    files = {f"e2e/{split}.txt": record_to_text(seed, split, records, 4)
             for split, records in (("train", 600), ("valid", 100), ("test", 100))}
    files |= {f"glue/MRPC/{split}.tsv": paraphrase_pairs(seed, split, rows) for split, rows in (("train", 3000), ("dev", 600))}
    files |= {f"glue/MNLI/{split}.tsv": inference_pairs(seed, split, count, kinds)
              for split, count, kinds in (("train", 4500, MAIN_KINDS), ("dev_matched", 600, MAIN_KINDS),
                                          ("dev_mismatched", 600, OTHER_KINDS))}
    return files


def write_tasks(out: Path, seed: int = 0) -> None:
    """Write every file of the toy tasks below `out`; equal seeds give equal bytes."""
    for name, lines in task_files(seed).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        print(f"{path}: {len(lines):,} lines")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the toy tasks' data.")
    parser.add_argument("--out", type=Path, default=Path("toy/data"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_tasks(args.out, args.seed)


if __name__ == "__main__":
    cli.run(main)
