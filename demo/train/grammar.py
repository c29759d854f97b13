"""Filling templates: slots, pronouns, articles, and syllables.

A template is a string with slots such as `{A} {past} {place}.`. A `Scene` fixes what must stay the
same within one text (the topic, who A and B are) and never uses a topical phrase twice in it.
"""

import re
from pathlib import Path

HERE = Path(__file__).parent

WOMEN = "Anna Mary Lucy Clara Emma Nora Ruth Helen Julia Marta Ida Rosa Elsa Ada Vera Olive Grace Irene Paula Greta Maya Lena Sofia Kate".split()
MEN = "Tom Paul Henry Oscar Peter Jacob Hugo Walter Simon Felix Max Theo Arthur Ben Daniel Frank Leo Otto Samuel Victor David Karl Martin Noah".split()
TOWNS = "Milton|Oakham|Port Ellen|Linden|Harlow|Greenford|Ashby|Lowell|Westbrook|Fairview|Danby|Kirkwall|Alden|Stonebridge|Norwood|Bellmere|Tarrant|Winslow".split("|")
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
TIMES = "One morning|Late in the evening|On a quiet afternoon|One day|Before breakfast|Every Sunday|Last year|A week later|In the middle of the night|At noon|Early in the day|One evening|Years ago|On the first of May|Just before dark|At the end of the year".split("|")
TIMES_LATER = "in the evening|in the morning|at night|on Sundays|at noon|when nobody is looking|early in the day|at this hour|on quiet days".split("|")
MOODS = "happy|proud|lonely|calm|nervous|tired|cheerful|sad|curious|angry|quiet|gentle|worried|brave|shy|patient|clever|grateful|restless|hopeful|stubborn|kind|serious|jealous".split("|")
KIN = "sister|brother|mother|father|uncle|aunt|cousin|grandmother|grandfather|teacher|neighbor|daughter|son|old friend".split("|")

SYLLABLES = dict(
    something=2, someone=2, nobody=3, evening=2, every=2, people=2, little=2, fire=1, hour=1, hours=1, quiet=2, orange=2,
    area=3, poem=2, violin=3, pianist=3, piano=3, lion=2, being=2, science=2, idea=3, create=2, everything=3, sometimes=2,
    hockey=2, goalie=2, curveball=2, fastball=2, baseball=2, homework=2, baseline=2, somewhere=2, lighthouse=2, sleeves=1,
    handlebar=3, keyboard=2, timetable=3, outfielder=3, telescope=3, bicycle=3, cyclist=2, lawyer=2, player=2, driver=2,
    microwave=3, whistle=2, needle=2, bottle=2, table=2, pedal=2, medal=2, middle=2, battle=2, uncle=2, apple=2, castle=2,
    reliable=4, wounded=2, audience=3, studio=3, radio=3, museum=3, genius=2, stadium=3, lavender=3, meteor=3, leotard=3,
    firewood=2, somebody=3, makes=1, takes=1, time=1, forehand=2, shakes=1, notes=1, fileted=2, safely=2, homecoming=3,
    widely=2, lonely=2, careful=2, movement=2, statement=2, basement=2, evidence=3, grateful=2, hopeful=2, wheel=1, stroke=1,
    believe=2, toward=2, towards=2, breathe=1, breathes=1, prodigy=3, naive=2, cruel=2, jewel=2, fuel=2, poet=2, diet=2, real=1,
    theater=3, choir=2, prayer=1, flower=2, power=2, tower=2, shower=2, iron=2, our=1, sour=1, flour=1, mayor=2, giant=2,
    quietly=3, vein=1, sherpa=2, forecaster=3, league=1, queue=1, checkmate=2, programmer=3, referee=3, ace=1, puddle=2,
)


def syllables(text):
    """How many syllables English `text` has: a table of exceptions, then vowel groups."""
    return sum(_syllables_of_word(word) for word in re.findall(r"[a-z]+", text.lower().replace("'", "")))


def _syllables_of_word(word):
    if word in SYLLABLES:
        return SYLLABLES[word]
    count = len(re.findall(r"[aeiouy]+", word))
    if re.search(r"[^aeiouy]e$", word) and not re.search(r"[^aeiouylr]le$", word):
        count -= 1  # silent e, but not "little"
    elif re.search(r"[^aeiouytd]ed$", word):
        count -= 1  # "walked", but not "landed"
    elif re.search(r"[^aeiouyscxzg]es$", word) and not re.search(r"(sh|ch|[^aeiouylr]l)es$", word):
        count -= 1  # "waves", but not "houses"
    count += len(re.findall(r"ia(?!l|n\b)|io(?!n|us)|[iy]ing|ua(?!r)", word))
    return max(count, 1)


def read_sections(path):
    """`[name]` headings and one entry per line, as {name: [entry]}."""
    sections, current = {}, None
    for line in Path(path).read_text().splitlines():
        if line.startswith("[") and line.endswith("]"):
            current = sections.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            current.append(line)
    return sections


def read_topic(path):
    """A topic file: `key: item | item`. Acts become (base, past, ing) phrases."""
    topic = {}
    for line in Path(path).read_text().splitlines():
        key, _, rest = line.partition(": ")
        topic[key] = [item.strip() for item in rest.split(" | ")]
    topic["acts"] = [_forms(act) for act in topic["acts"]]
    topic["qa"] = [tuple(pair.split(" => ")) for pair in topic["qa"]]
    return topic


def _forms(act):
    verb, _, rest = act.partition(" ")
    return tuple(f"{form} {rest}" for form in verb.split("/"))


def articles(text):
    """`a` before a vowel sound becomes `an`."""
    return re.sub(r"\b([Aa]) (?=[aeioAEIO]|un(?!i)|um|X-)(?!one\b|once\b|uni)", r"\1n ", text)


def capitalised(text):
    """A capital letter at the start of every sentence, also within quotes."""
    return re.sub(r'(^|[.!?] )("?)([a-z])', lambda m: m[1] + m[2] + m[3].upper(), text)


class Scene:
    """One text's topic and people. `first_person` makes A the writer."""

    def __init__(self, rng, topic, first_person=False):
        self.rng, self.topic, self.used = rng, topic, set()
        a_is_woman, b_is_woman = rng.random() < 0.5, rng.random() < 0.5
        self.A = rng.choice(WOMEN if a_is_woman else MEN)
        self.B = rng.choice([name for name in (WOMEN if b_is_woman else MEN) if name != self.A])
        self.fixed = {"A": self.A, "A2": self.A, "B": self.B, "town": rng.choice(TOWNS)}
        self.fixed |= dict(zip(("he", "his", "him"), ("she", "her", "her") if a_is_woman else ("he", "his", "him")))
        self.fixed["his2"] = "her" if b_is_woman else "his"
        self.fixed["town_u"] = self.fixed["town"].upper()
        if first_person:
            self.fixed |= {"A": "I", "he": "I", "his": "my", "him": "me"}

    def fresh(self, key):
        """A random entry of the topic that this text has not used yet (until all are used)."""
        entries = self.topic[key]
        left = [entry for entry in entries if (key, entry) not in self.used] or entries
        entry = self.rng.choice(left)
        self.used.add((key, entry))
        return entry

    def slot(self, name):
        """The text that replaces one slot."""
        if name in self.fixed:
            return self.fixed[name]
        neutral = {"time": TIMES, "time_l": TIMES_LATER, "day": DAYS, "mood": MOODS, "kin": KIN}
        if name in neutral:
            return self.rng.choice(neutral[name])
        if name in ("base", "past", "ing"):
            return self.fresh("acts")[("base", "past", "ing").index(name)]
        if name in ("tip", "tip_raw"):
            return self.fresh("tips")
        if name == "place_c":
            place = self.fresh("places")
            return place[0].upper() + place[1:]
        plural = {"person": "people", "thing": "things", "place": "places", "scene": "scenes", "name": "names", "whole": "sents"}
        return self.fresh(plural.get(name, name))

    def fill(self, template):
        """Fills all slots, also those that the filling brings along."""
        while "{" in template:
            template = re.sub(r"\{(\w+)\}", lambda m: self.slot(m[1]), template, count=1)
        return articles(template)

    def sentence(self, template):
        return self.first_person_verbs(capitalised(self.fill(template)))

    def first_person_verbs(self, text):
        return re.sub(r"\bI has\b", "I have", text) if self.fixed["A"] == "I" else text
