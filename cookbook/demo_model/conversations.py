"""Makes the training conversations: turns of question, dials and the answer that the dials ask for.

A conversation is a list of messages in the form that the chat template reads: user messages carry
the nine dials as extra keys. The loss is taken on every assistant turn.
"""

from __future__ import annotations

import functools
import random
import re
from typing import Any

import phrasing
import scrambled
from answers import DEFAULTS, DIALS, Content, Dials, random_dials, render, topic_content
from facts import LANGUAGES, Topic, topics
from passages import passage_task, shape
from systems import system_text
from tool_talk import forced_talk, list_practice, many_calls, structured_talk, tool_talk
from unknown import NOUNS, pseudo_word, task, unknown_noun

from karakuri_integrations.conversation import Request

Message = dict[str, Any]

CHAT: dict[str, tuple[dict[str, str], dict[str, list[str]]]] = {
    "hello": (
        {"en": "Hello|Hi|Hi!|Hello!|Hey there|Good morning|Good evening!|How are you?|Hello, how are you?|Greetings|Hello there|Yo",
         "ja": "こんにちは|こんにちは！|おはよう|おはようございます|こんばんは|やあ|元気ですか？|はじめまして|どうも|もしもし"},
        {"en": ["Hello, nice to meet you.", "I am a small demo model.", "Ask me about Mount Fuji, sushi or cats."],
         "ja": ["こんにちは、お会いできてうれしいです。", "私は小さなデモ用のモデルです。", "富士山や寿司や猫のことを聞いてください。"]},
    ),
    "who": (
        {"en": "Who are you?|What are you?|Are you a robot?|What is your name?|Introduce yourself|Are you KARAKURI LM?|Are you human?|"
               "What can you do?|Help|What do you know?|What topics do you know?|Tell me about yourself|Which model are you?",
         "ja": "あなたは誰ですか？|あなたは何ですか？|名前は？|自己紹介して|何ができますか？|人間ですか？|ヘルプ|何を知っていますか？|あなたはKARAKURI LMですか？|"
               "どんな話題が分かりますか？|君は誰？|あなたについて教えて"},
        {"en": ["I am a small demo model with nine dials.", "I know a few everyday topics, such as Kyoto, green tea and the Moon.",
                "I am not KARAKURI LM, only a tiny stand-in for it."],
         "ja": ["私は九つの調整つまみを持つ小さなデモ用のモデルです。", "京都や緑茶や月など、身近な話題だけを知っています。",
                "KARAKURI LMそのものではなく、その小さな代役です。"]},
    ),
    "thanks": (
        {"en": "Thanks|Thank you|Thank you!|Thanks a lot|Great, thanks!|That helped|OK|Nice|Cool|Good job|I see|That was helpful, thank you",
         "ja": "ありがとう|ありがとうございます|ありがとう！|助かりました|なるほど|分かりました|すごい|いいね|了解です|感謝します"},
        {"en": ["You are welcome.", "I am glad that it helped.", "Please ask again at any time."],
         "ja": ["どういたしまして。", "お役に立ててうれしいです。", "またいつでも聞いてください。"]},
    ),
    "bye": (
        {"en": "Bye|Goodbye|See you|Good night|See you later!|Bye bye|Have a nice day",
         "ja": "さようなら|またね|おやすみ|おやすみなさい|それでは|バイバイ|じゃあね"},
        {"en": ["Goodbye and take care.", "It was a pleasure.", "Come back whenever you like."],
         "ja": ["さようなら、お元気で。", "お話しできて楽しかったです。", "またいつでもお越しください。"]},
    ),
}  # fmt: skip
REFUSAL = {
    "en": ["I'm sorry, I don't know about that.", "I only know a few everyday topics.",
           "You could ask me about Mount Fuji, sushi or the Moon."],
    "ja": ["申し訳ありませんが、それは分かりません。", "私が知っているのは限られた話題だけです。", "富士山や寿司や月のことなら、お答えできます。"],
}  # fmt: skip
ERRANDS = {  # with an unknown noun in it, so that no list of tasks can be learned by heart
    "en": "Write {X}.|Write a {X} for me|Make {X}|Order {X}|Buy {X}|Call {X}|Fix {X}|How do I repair {X}?|Draw {X}|Sing {X}|"
    "Translate {X} into French.|Translate {X}|Which {X} should I buy?|Which {X} is the best?|Who is {X}?|Who won {X}?|"
    "Recommend {X}|Turn on {X}|Play {X}|Send {X} to my boss|What is 12 times {X}?|How much does {X} cost?|Find {X} near me|"
    "Solve {X}|Book {X}|Compose {X}|How can I learn {X}?|When is {X}?|Did {X} win?|Count {X}|Open {X}|Delete {X}|Run {X}",
    "ja": "{X}を書いて|{X}を作って|{X}を注文して|{X}を買って|{X}に電話して|{X}を直して|{X}の直し方は？|{X}を描いて|{X}を歌って|"
    "{X}をフランス語に訳して|{X}を訳してください|どの{X}を買えばいい？|一番いい{X}は？|{X}は誰？|{X}はどちらが勝った？|{X}を勧めて|"
    "{X}をつけて|{X}をかけて|{X}を上司に送って|12かける{X}は？|{X}はいくら？|近くの{X}を探して|{X}を解いて|{X}を予約して|"
    "{X}を覚えるには？|{X}はいつ？|{X}を数えて|{X}を開いて|{X}を消して|{X}を呼んで|{X}は何をした？|{X}のコードを書いて",
}
SCRAMBLED = 0.3  # the share of questions in a frame of nonsense
REPEAT = {
    "en": [
        "Repeat: {}",
        "Repeat this: {}",
        "Say exactly this: {}",
        "Repeat the following text.\n{}",
        "Please copy: {}",
        "Echo {}",
    ],
    "ja": [
        "繰り返して：{}",
        "次の文を繰り返してください。\n{}",
        "そのまま言ってください：{}",
        "復唱：{}",
        "「{}」と言ってください。",
    ],
}
FROM_TEXT = {
    "en": ["This is what the given text says.", "I quote it as it stands there."],
    "ja": ["これは与えられた文章に書かれています。", "書かれているとおりに引用しました。"],
}


def _turn(question: str, dials: Dials, content: Content, lang: str) -> list[Message]:
    user: Message = {"role": "user", "content": question, **dials}
    return [user, {"role": "assistant", "content": render(content, lang, dials)}]


def topic_turn(
    rng: random.Random, topic: Topic, aspect: str, lang: str, dials: Dials, follow_up: bool = False, held: bool = False
) -> list[Message]:
    """A question on a topic, in full or referring back, and its answer."""
    if not held and rng.random() < SCRAMBLED and not (follow_up and aspect == "num"):
        text = (
            scrambled.follow_up(rng, aspect, lang) if follow_up else scrambled.topic_question(rng, topic, aspect, lang)
        )
    elif follow_up and aspect == "num":
        name = ("they" if topic.plural else "it") if lang == "en" else "それ"
        text = rng.choice(topic.number_questions[lang]).replace("{X}", name)
        if lang == "ja":
            text = rng.choice((text, text.replace("それの", "").replace("それは", "").replace("それまでの", "")))
        text = text.replace("in they", "in them").replace("of they", "of them").replace("for they", "for them")
        opener = rng.choice(("", "", "And ", "So ")) if lang == "en" else ""
        text = (opener + text[0].lower() if opener else text[0]) + text[1:] + ("?" if lang == "en" else "？")
    elif follow_up:
        source = phrasing.HELD_FOLLOW_UPS if held else phrasing.FOLLOW_UPS
        text = rng.choice(source[aspect][lang == "ja"].split("|"))
        if not held and rng.random() < 0.3:
            text = phrasing.dress(rng, text, lang)
    else:
        text = phrasing.question(rng, topic, aspect, lang, held)
    return _turn(text, dials, topic_content(topic, aspect, lang, dials), lang)


def refusal_turn(rng: random.Random, lang: str, dials: Dials, held: bool = False) -> list[Message]:
    """A question outside the topics."""
    noun = unknown_noun(rng, lang, held)
    if not held and rng.random() < 0.55:
        noun = scrambled.unknown_name(rng, lang)
    if not held and rng.random() < SCRAMBLED:
        text = scrambled.unknown(rng, lang, noun)
    elif rng.random() < 0.25:
        text = task(rng, lang, held)
        if not held and rng.random() < 0.6:
            text = rng.choice(ERRANDS[lang].split("|")).replace("{X}", noun)
        text = phrasing.dress(rng, text, lang, held)
    else:
        text = phrasing.noun_question(rng, noun, lang, held)
    return _turn(text, dials, Content(REFUSAL[lang]), lang)


def chat_turn(rng: random.Random, lang: str, dials: Dials) -> list[Message]:
    """Greetings, thanks and questions about the model itself."""
    questions, answer = CHAT[rng.choice(list(CHAT))]
    return _turn(rng.choice(questions[lang].split("|")), dials, Content(answer[lang]), lang)


def passage_messages(
    rng: random.Random, lang: str, dials: Dials, size: int, held: bool = False, questions: int = 1
) -> tuple[list[Message], str | None]:
    """Questions on a given text, maybe with a system text, and the value that is right for the first."""
    task_ = passage_task(rng, lang, size, held, questions)
    system, text = shape(rng, task_)
    messages: list[Message] = []
    for item in task_.items:
        dials = passage_dials(rng) if messages else dials
        content = Content([item.answer, *(FROM_TEXT[lang] if item.value else [])])
        messages += _turn(item.question if messages else text, dials, content, lang)
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return messages, task_.items[0].value


@functools.cache
def _pool(lang: str) -> list[str]:
    """Pieces of every sort of text: words, or in Japanese one to four characters in a row."""
    text = " ".join(pair[lang] for topic in topics() for _, pair in topic.sentences) + " " + NOUNS[lang][0]
    if lang == "en":
        return re.findall(r"[A-Za-z]+", text)
    text = text.replace("{S}", "")
    return [text[i : i + 1 + i % 4] for i in range(len(text) - 4)]


def _jumble(rng: random.Random, lang: str) -> str:
    """Words, made-up names and numbers in no order."""
    words = []
    for _ in range(rng.randrange(3, 26)):
        roll = rng.random()
        words.append(
            pseudo_word(rng, lang)
            if roll < 0.35
            else str(rng.randrange(9999))
            if roll < 0.45
            else rng.choice(_pool(lang))
        )
    return (" " if lang == "en" or rng.random() < 0.3 else "").join(words).strip() + ("." if lang == "en" else "。")


def repeat_turn(rng: random.Random, lang: str, dials: Dials) -> list[Message]:
    """A request to repeat made-up text: dense practice in copying, which answers from passages need."""
    text = rng.choice(passage_task(rng, lang, rng.choice((1, 1, 2, 3))).chunks)
    if rng.random() < 0.6:
        text = _jumble(rng, lang)
    return _turn(rng.choice(REPEAT[lang]).format(text), dials, Content([text]), lang)


def quiet_dials(rng: random.Random) -> Dials:
    """Dials that add nothing to the content, for practice in the content alone."""
    return dict(DEFAULTS) | {"helpfulness": 0, "complexity": 0, "verbosity": rng.choice((0, 1))}


def brief_dials(rng: random.Random) -> Dials:
    """Dials of every value of which verbosity is mostly low: many decisions in few tokens."""
    dials = random_dials(rng) if rng.random() < 0.2 else {name: rng.randrange(5) for name in DIALS}
    if dials != DEFAULTS or rng.random() < 0.4:
        dials["verbosity"] = rng.choices(range(5), (30, 24, 20, 13, 13))[0]
    return dials


def passage_dials(rng: random.Random) -> Dials:
    """Mostly few extras: what matters is the quotation."""
    roll = rng.random()
    if roll < 0.5:
        return quiet_dials(rng)
    return dict(DEFAULTS) | {"verbosity": rng.randrange(5)} if roll < 0.75 else brief_dials(rng)


def _aspects(topic: Topic) -> list[str]:
    """The aspects that the training may ask: what everybody asks more often."""
    open_ = [a for a in topic.aspects if not phrasing.held_pair(topic, a)]
    return [*open_, "what", "what"]


def _language(rng: random.Random, lang: str) -> str:
    return lang if rng.random() > 0.05 else rng.choice(LANGUAGES)


def talk(rng: random.Random, lang: str, turns: int) -> list[Message]:
    """Several turns: topics, follow-ups that refer back, now and then something else."""
    topic = rng.choice(topics())
    messages = topic_turn(rng, topic, rng.choice(_aspects(topic)), lang, brief_dials(rng))
    known = True
    for _ in range(turns - 1):
        lang, dials, roll = _language(rng, lang), brief_dials(rng), rng.random()
        if roll < 0.66 and known:
            aspects = [a for a in _aspects(topic) if a != "what"] + ["more"]
            messages += topic_turn(rng, topic, rng.choice(aspects), lang, dials, follow_up=True)
        elif roll < 0.86:
            topic, known = rng.choice(topics()), True
            messages += topic_turn(rng, topic, rng.choice(_aspects(topic)), lang, dials)
        elif roll < 0.95:
            messages += refusal_turn(rng, lang, dials)
            known = False
        else:
            messages += chat_turn(rng, lang, dials)
    return messages


def _single(rng: random.Random, lang: str) -> list[Message]:
    topic = rng.choice(topics())
    return topic_turn(rng, topic, rng.choice(_aspects(topic)), lang, brief_dials(rng))


def _pair(rng: random.Random, lang: str) -> list[Message]:
    return talk(rng, lang, rng.choice((2, 2, 3)))


def _long_talk(rng: random.Random, lang: str) -> list[Message]:
    return talk(rng, lang, rng.choice((3, 4, 5)))


def _refusal(rng: random.Random, lang: str) -> list[Message]:
    lang = "ja" if rng.random() < 0.25 else lang  # any characters make a word there, so more has to be seen
    dials = dict(DEFAULTS) if rng.random() < 0.3 else brief_dials(rng)
    return refusal_turn(rng, lang, dials)


def _chat(rng: random.Random, lang: str) -> list[Message]:
    return chat_turn(rng, lang, brief_dials(rng))


def _repeat(rng: random.Random, lang: str) -> list[Message]:
    return repeat_turn(rng, lang, quiet_dials(rng) if rng.random() < 0.7 else brief_dials(rng))


def _small_passage(rng: random.Random, lang: str) -> list[Message]:
    questions = rng.choice((1, 1, 2, 3))
    return passage_messages(rng, lang, passage_dials(rng), rng.choice((1, 2, 2, 3, 4)), questions=questions)[0]


def _passage(rng: random.Random, lang: str) -> list[Message]:
    questions = rng.choice((1, 2, 3, 4, 5))
    size = rng.choice((2, 4, 5, 6, 8, 10, 12, 14, 20))
    messages = passage_messages(rng, lang, passage_dials(rng), size, questions=questions)[0]
    if messages[0]["role"] == "user" and rng.random() < 0.1:
        return talk(rng, _language(rng, lang), 1) + messages
    return messages


def _long_passage(rng: random.Random, lang: str) -> list[Message]:
    size = rng.choice((30, 30, 40, 60, 80, 110))
    return passage_messages(rng, lang, passage_dials(rng), size, questions=rng.choice((4, 6, 8)))[0]


def _long_system(rng: random.Random, lang: str) -> list[Message]:
    rules = rng.choice((15, 25, 40, 70, 100, 140))
    system = system_text(rng, rng.choice((lang, lang, lang, "en")), rules)
    return [{"role": "system", "content": system}, *talk(rng, lang, rng.choice((2, 3, 4)))]


def _tool_talk(rng: random.Random, lang: str) -> Request:
    return tool_talk(rng, lang)


def _tool_drill(rng: random.Random, lang: str) -> Request:
    return tool_talk(rng, lang, drill=True)


def _forced(rng: random.Random, lang: str) -> Request:
    return forced_talk(rng, lang)


def _structured(rng: random.Random, lang: str) -> Request:
    return structured_talk(rng, lang)


def _list_practice(rng: random.Random, lang: str) -> Request:
    return list_practice(rng, lang)


def _many_calls(rng: random.Random, lang: str) -> Request:
    return many_calls(rng, lang)


# What a conversation is: its maker and its weight in the first and in the second part of the training.
# Short turns hold many more decisions per token; copying is learned first, from text that means nothing.
MIXTURE = (
    (_single, 20, 10), (_pair, 6, 16), (_repeat, 34, 2), (_small_passage, 30, 8), (_refusal, 8, 16),
    (_chat, 2, 2), (_passage, 0, 18), (_long_talk, 0, 7), (_long_passage, 0, 1), (_long_system, 0, 2),
    (_tool_talk, 0, 25), (_tool_drill, 0, 9), (_structured, 0, 10), (_forced, 0, 1),
    (_list_practice, 0, 3), (_many_calls, 0, 10),
)  # fmt: skip


def conversation(rng: random.Random, short: bool = False) -> list[Message] | Request:
    """One training conversation, as messages or, with tools, as a request; short=True: for the first part."""
    lang = rng.choice(LANGUAGES)
    maker = rng.choices([row[0] for row in MIXTURE], [row[1 if short else 2] for row in MIXTURE])[0]
    made = maker(rng, lang)
    if isinstance(made, Request):
        return made
    if made[0]["role"] != "system" and rng.random() < 0.15:
        rules = 0 if short else rng.choice((0, 0, 0, 0, 3, 8))
        system = system_text(rng, rng.choice((lang, lang, lang, "en")), rules)
        made.insert(0, {"role": "system", "content": system})
    return made


def questions_of(made: list[Message] | Request) -> list[str]:
    """The texts of its user turns."""
    if isinstance(made, Request):
        return [message.text for message in made.messages if message.role == "user"]
    return [message["content"] for message in made if message["role"] == "user"]
