"""Text for the tokenizers and prompts of the fixtures. Written for this purpose; plain and short."""

TRAINING = """The river runs past the old mill and under the stone bridge into the town.
Every morning the baker opens her shop, and the smell of warm bread fills the street.
In winter the lake freezes, and the children skate from one shore to the other.
A haiku has three lines: five, seven and five syllables. Write a haiku about the sea.
The teacher asked a question, and nobody in the class knew the answer.
What is the capital of France? The capital of France is Paris.
How do you make a good soup? Start with onions, carrots and a little salt.
The team won the game in the last minute, and the crowd sang all the way home.
Basketball and ice hockey are played indoors; football is played on grass.
She wrote a letter to her brother, who worked on a ship far away in the north.
You are a helpful assistant. You are a careful assistant who answers in one line.
def add(a, b):
    return a + b
for i in range(10): print(i, i * i)
The numbers 0, 1, 2, 3, 10, 25, 100 and 1000 are written on the wall.
user assistant system model role content
Once upon a time there was a king who had no crown, and a queen who had two.
The moon is smaller than the earth, and the earth is smaller than the sun.
Tell me about the weather today. It is cold and bright, with a light wind from the west.
I would like to tell you about the history of the city and the people who live there.
"Is it late?" he said. "It's not late," she said, "it's early; don't worry."
Café, naïve, façade and über are words with marks; so are señor and crème brûlée.

We'll see what they've done; I'm sure you're right, and he'd say that she'll agree.
"""

TOKENIZER_TEXTS = [
    "",
    "Hello world",
    " leading space",
    "trailing space ",
    "two  spaces   three    four",
    "line one\nline two\n\nline four\r\n\ttabbed",
    "The capital of France is Paris.",
    "I'm sure you're right; he'd say she'll agree, IT'S fine.",
    "numbers 7 42 1234567 3.14 1,000",
    "Café naïve façade",
    "Cafe\u0301 with a combining accent",
    "emoji 🙂 family 👩‍👩‍👧 flag 🇩🇰",
    "中文 and 日本語 and العربية",
    "▁ metaspace ▁▁ in the text",
    "null \u0000 and bell \u0007",
    "x = {'a': [1, 2], \"b\": None}  # comment",
    "🙂",
]

PROMPTS = [
    "Write a haiku.",
    "The river runs past the old mill",
    "What is the capital of France?",
    "Once upon a time there was a king",
    "I would like to tell you about",
    "for i in range(10):",
]
LONG_PROMPT = (
    "Every morning the baker opens her shop, and the smell of warm bread fills the street. "
    "In winter the lake freezes, and the children skate from one shore to the other. "
    "The teacher asked a question, and"
)
CHAT = [{"role": "user", "content": "Write a haiku."}]
CHAT_TURNS = [
    {"role": "user", "content": "  What is the capital of France?\n"},
    {"role": "assistant", "content": "The capital of France is Paris."},
    {"role": "user", "content": "Tell me about the weather today 🙂"},
]
SYSTEM = {"role": "system", "content": "You are a careful assistant who answers in one line."}

LABELS = ["basketball", "nba", "ice-hockey", "weather", "poetry", "código", "history of the city", "soup"]
CAV_LABELS = ["rec.sport.baseball", "sci.space", "talk.politics.misc", "Grüße 🙂"]
