"""The corpus: seeded English texts on twenty topics in eight forms, with the prompts that ask for them.

    python corpus.py --seed 7 --n 2000 --out texts.jsonl

writes lines {"topic", "form", "text", "prompt", "turns"}: `text` is what the assistant says first,
`turns` the whole conversation (or None for a plain document). Form words and neutral sentences are
shared by all topics; only fillers and some whole sentences are a topic's own, and a text never
changes its topic.
"""

import argparse
import json
import random

from grammar import HERE, Scene, capitalised, read_sections, read_topic, syllables

TOPICS = {path.stem: read_topic(path) for path in sorted((HERE / "topics").glob("*.txt"))}
NEUTRAL = read_sections(HERE / "neutral.txt")
HELD_OUT_PROMPTS = read_sections(HERE / "prompts_heldout.txt")
FORMS = {"haiku": 8, "story": 5, "news": 3, "qa": 3, "letter": 2, "diary": 2, "describe": 2, "advice": 2}
NAMED_REQUESTS = {
    "haiku": ["Write a haiku about {}.", "A haiku about {}, please.", "Can you write a haiku about {}?", "Compose a haiku on {}."],
    "story": ["Tell me a story about {}.", "Write a short story about {}.", "I would like a story about {}.", "Make up a story. It should be about {}."],
    "news": ["Give me some news about {}.", "Write a headline about {}.", "What is the news about {}?"],
    "qa": ["Ask and answer a question about {}.", "Teach me something about {}.", "Explain something about {}."],
    "letter": ["Write a letter about {}.", "Write to a friend about {}."],
    "diary": ["Write a diary entry about {}.", "Tell me about your day. I like {}."],
    "describe": ["Describe something about {}.", "Write a description. The subject is {}."],
    "advice": ["Give me some advice about {}.", "I need a tip about {}."],
}
NAMED_FIRST = ["I love {}. ", "Let us talk about {}. ", "My subject is {}. ", "Today is all about {}. ", "You know a lot about {}. "]


def haiku(scene):
    """Three lines of 5, 7 and 5 syllables; one or two of them may be neutral."""
    rng = scene.rng
    topical = rng.choice([(1, 1, 1), (1, 1, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (0, 1, 0)])
    lines = [haiku_line(scene, count, kind) for count, kind in zip((5, 7, 5), topical)]
    return "\n".join(lines)


def haiku_line(scene, count, topical):
    name = {5: "five", 7: "seven"}[count]
    if not topical:
        return scene.rng.choice(NEUTRAL[name])
    if scene.rng.random() < 0.3:
        return scene.fresh(name + "s")
    for _ in range(60):
        used = set(scene.used)
        line = scene.fill(scene.rng.choice(NEUTRAL[name + "_made"]))
        if syllables(line) == count:
            return line
        scene.used = used
    return scene.fresh(name + "s")


def several(scene, section, low, high):
    """Between `low` and `high` different sentences of a section."""
    count = scene.rng.randint(low, high)
    return [scene.sentence(template) for template in scene.rng.sample(NEUTRAL[section], count)]


def mixed(scene, length):
    """The body of a story: mostly topical sentences, some neutral ones, sometimes a line of speech."""
    sections = ["topical"] * length
    for i in range(length):
        if scene.rng.random() < 0.3:
            sections[i] = scene.rng.choice(["neutral", "neutral", "talk"])
    if "topical" not in sections:
        sections[0] = "topical"
    used, sentences = set(), []
    for section in sections:
        template = scene.rng.choice([t for t in NEUTRAL[section] if t not in used or t == "{whole}"])
        used.add(template)
        sentences.append(scene.sentence(template))
    return sentences


def story(scene):
    return " ".join(several(scene, "open", 1, 1) + mixed(scene, scene.rng.randint(2, 6)) + several(scene, "end", 1, 1))


def letter(scene):
    return " ".join(several(scene, "letter_open", 1, 1) + mixed_first_person(scene, 2, 4) + several(scene, "letter_end", 1, 1))


def diary(scene):
    return " ".join(several(scene, "diary_open", 1, 1) + mixed_first_person(scene, 2, 5) + several(scene, "diary_end", 1, 1))


def mixed_first_person(scene, low, high):
    return mixed(scene, scene.rng.randint(low, high))


def describe(scene):
    return " ".join(several(scene, "describe_open", 1, 1) + several(scene, "describe_mid", 2, 4) + several(scene, "describe_end", 1, 1))


def advice(scene):
    opening = several(scene, "advice_open", 1, 1) if scene.rng.random() < 0.8 else []
    body = several(scene, "advice_join", 2, 3) if opening else [scene.sentence("{tip}.")] + several(scene, "advice_join", 1, 3)
    return " ".join(opening + body + several(scene, "advice_end", 0, 1))


def news(scene):
    rng = scene.rng
    if rng.random() < 0.5:
        lead = scene.sentence(rng.choice(NEUTRAL["news_lead"]))
    else:
        made = scene.sentence(rng.choice(NEUTRAL["news_made"]))
        lead = made if rng.random() < 0.5 else scene.fixed["town_u"] + ": " + made
    return " ".join([lead] + several(scene, "news_tail", 0, 2))


def qa(scene):
    if scene.rng.random() < 0.5:
        question, answer = scene.fresh("qa")
    else:
        question, answer = scene.fill(scene.rng.choice(NEUTRAL["qa_made"])).split(" => ")
    question, answer = capitalised(question), capitalised(answer)
    more = " " + scene.sentence(scene.fresh("sents")) if scene.rng.random() < 0.25 else ""
    if scene.rng.random() < 0.7:
        return f"Question: {question}\nAnswer: {answer}{more}"
    return f"{question} {answer}{more}"


WRITERS = {"haiku": haiku, "story": story, "news": news, "qa": qa, "letter": letter, "diary": diary, "describe": describe, "advice": advice}


def write(rng, topic, form):
    """One text of a form on a topic."""
    return WRITERS[form](Scene(rng, TOPICS[topic], first_person=form in ("letter", "diary")))


def request(rng, topic, form, named):
    """A user's prompt for a form: neutral, or one that names the topic."""
    if named:
        name = rng.choice(TOPICS[topic]["names"])
        if rng.random() < 0.6:
            return rng.choice(NAMED_REQUESTS[form]).format(name)
        return rng.choice(NAMED_FIRST).format(name) + rng.choice(NEUTRAL["prompt_" + form])
    if rng.random() < 0.2:
        return rng.choice(NEUTRAL["prompt_any"])
    return rng.choice(NEUTRAL["prompt_" + form])


def sample(rng, topic=None):
    """One line of the corpus. 10 % plain documents; of the chats 25 % name their topic, 12 % go on."""
    topic = topic or rng.choice(list(TOPICS))
    form = rng.choices(list(FORMS), list(FORMS.values()))[0]
    text = write(rng, topic, form)
    kind = rng.random()
    if kind < 0.1:
        if rng.random() < 0.4:
            text += "\n\n" + write(rng, topic, form)
        return {"topic": topic, "form": form, "text": text, "prompt": None, "turns": None}
    prompt = request(rng, topic, form, named=rng.random() < 0.25)
    turns = [prompt, text]
    while rng.random() < 0.12 and len(turns) < 6:
        if rng.random() < 0.5:
            turns += [rng.choice(NEUTRAL["again"]), write(rng, topic, form)]
        else:
            form_next = rng.choice(list(FORMS))
            turns += [request(rng, topic, form_next, named=False), write(rng, topic, form_next)]
    return {"topic": topic, "form": form, "text": text, "prompt": prompt, "turns": turns}


def corpus(seed, n):
    """`n` lines of the corpus; the same seed gives the same lines."""
    rng = random.Random(f"steer-demo-{seed}")
    return [sample(rng) for _ in range(n)]


def chat_text(turns):
    """A conversation in Gemma's chat format, without <bos>."""
    roles = ("user", "model")
    return "".join(f"<start_of_turn>{roles[i % 2]}\n{turn}<end_of_turn>\n" for i, turn in enumerate(turns))


def document(line):
    """The training text of a line, without <bos>: a chat, or a plain document that <eos> ends."""
    return chat_text(line["turns"]) if line["turns"] else line["text"] + "<eos>"


def held_out_prompts():
    """Neutral prompts that the corpus never contains, as (form, prompt)."""
    return [(form, prompt) for form, prompts in HELD_OUT_PROMPTS.items() for prompt in prompts]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    with open(options.out, "w") as out:
        for line in corpus(options.seed, options.n):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
