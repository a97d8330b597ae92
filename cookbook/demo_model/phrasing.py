"""How questions are worded: openers x wrappers x frames x closers, in both languages.

Every list is written as (trained, held out): the held-out part is used by the evaluation only.
{X} is the topic's name, {N} a noun phrase about it, {Q} a whole question.
"""

from __future__ import annotations

import random

from facts import Topic

Split = tuple[list[str], list[str]]


def _s(trained: str, held: str) -> Split:
    return trained.split("|"), held.split("|")


OPENERS: dict[str, Split] = {
    "en": _s(
        "||||||Hi, |Hello. |Hey, |Excuse me, |Please |So, |OK, |Well, |Good morning! |I have a question. |"
        "Quick question: |Question: |One more thing: |Hi there! |Sorry, |Just wondering: |By the way, |"
        "For my homework: |My friend asks: |Dear assistant, |Oh, |Now ",
        "Good evening, |Pardon me. |Here is my question: |Before I forget, |",
    ),
    "ja": _s(
        "||||||すみません、|あの、|ねえ、|こんにちは。|質問です。|ちょっと聞きたいのですが、|突然ですが、|はじめまして。|"
        "おはようございます。|一つ質問です。|では、|じゃあ、|ところで、|宿題なのですが、|友達に聞かれました。|お願いします。|えーと、|"
        "もしよければ、|気になったのですが、|初めて質問します。",
        "こんばんは。|失礼します。|お尋ねします。|ふと思ったのですが、|",
    ),
}
CLOSERS: dict[str, Split] = {
    "en": _s(
        "|||||||| please| Thanks!| Thank you.| for me| in short| if you can| briefly| in detail|"
        " in simple words| Please be kind.| I am curious.| today| for my homework| for a child|"
        " as well as you can| right now| I really want to know.| for a school report",
        " in your own words| Many thanks in advance!| I would be glad.| for beginners|",
    ),
    "ja": _s(
        "||||||||お願いします。|よろしくお願いします。|ありがとう。|簡単でいいです。|詳しくお願いします。|急いでいます。|"
        "子どもにも分かるように。|気になります。|助かります。|短くてもいいです。|ぜひ知りたいです。|できれば詳しく。",
        "どうぞよろしく。|初心者です。|手短にどうぞ。|前から気になっていました。|",
    ),
}
WRAPPERS: dict[str, Split] = {
    "en": _s(
        "Tell me about {N}|Tell me something about {N}|Can you tell me about {N}?|Could you tell me about {N}?|"
        "What can you tell me about {N}?|What do you know about {N}?|I want to know about {N}.|"
        "I would like to know more about {N}.|Explain {N}|Describe {N}|Please explain {N} to me.|"
        "Give me information on {N}|Give me some facts about {N}|Say something about {N}|Talk about {N}|"
        "Let's talk about {N}.|I am interested in {N}.|I'm curious about {N}.|Do you know anything about {N}?|"
        "Would you explain {N}?|Write about {N}|Write a few lines about {N}|Teach me about {N}|{N}|{N}?|"
        "{N}, please|Any facts about {N}?|What about {N}?|How about {N}?|I need to learn about {N}.|"
        "Please introduce {N}|I have to write about {N}. Help me.|Help me understand {N}|"
        "My question is about {N}.|Inform me about {N}|Summarize {N}|Share what you know about {N}|"
        "Have you heard of {N}?|Is there anything to know about {N}?|{N} - what should I know?|"
        "I know nothing about {N}.|We are studying {N}.|Show me facts on {N}",
        "Could you please share some facts on {N}?|Can you tell me something about {N} please?|"
        "I wonder what you can say about {N}.|Enlighten me about {N}|What should a visitor know about {N}?|"
        "Walk me through {N}|Might you say a word or two about {N}?|{N}: what is worth knowing?|"
        "I'd love to hear about {N}.|Do give me an overview of {N}|Fill me in on {N}|"
        "Would you mind telling me about {N}?|I was asked about {N}. What can I say?",
    ),
    "ja": _s(
        "{N}について教えてください。|{N}について教えて|{N}を教えて|{N}について知りたいです。|{N}について説明してください。|"
        "{N}を説明して|{N}とは？|{N}って何？|{N}について話して|{N}のことを教えて|{N}は？|{N}が知りたい|{N}について簡単にまとめて|"
        "{N}について何か知っていますか？|{N}を紹介してください。|{N}に興味があります。|{N}について一言|{N}の話をしてください。|"
        "{N}|{N}？|{N}について書いて|{N}のことが気になります。|{N}について勉強しています。|{N}を知っていますか？|"
        "{N}について詳しく|{N}って？|{N}についての情報をください。|{N}について質問があります。|{N}はどうですか？|"
        "{N}の説明をお願いします。|{N}のことを話そう。|{N}を調べています。|{N}について語って|{N}、教えて！|{N}のことは分かりますか？|"
        "{N}についてのレポートを書きます。|{N}について答えてください。",
        "{N}について少しお聞かせください。|{N}のことを何でもいいので話してくれますか？|{N}に関して知っていることは？|"
        "{N}の要点を挙げてください。|{N}というのはどういうものですか？|{N}について解説していただけますか？|"
        "{N}とはどんなものなのでしょう？|{N}に詳しいですか？|{N}についてひとこと頼みます。|{N}の豆知識をひとつ",
    ),
}
QUESTION_WRAPPERS: dict[str, Split] = {
    "en": _s(
        "{Q}?|{Q}?|{Q}?|{Q}|Please tell me: {Q}?|Do you know this: {Q}?|I wonder: {Q}?|{Q}, please?|"
        "Answer this: {Q}?|Tell me, {Q}?|I want to ask: {Q}?|{Q}? I forgot.|{Q}, do you know?|"
        "Can you answer this? {Q}?|{Q}? Thanks!",
        "Can you help me with this: {Q}?|{Q}, any idea?|May I ask: {Q}?|{Q} exactly?",
    ),
    "ja": _s(
        "{Q}？|{Q}？|{Q}ですか？|{Q}ですか|{Q}でしょうか？|{Q}か教えてください。|{Q}なの？|{Q}か知りたいです。|"
        "{Q}か分かりますか？|{Q}だっけ？",
        "{Q}でしたっけ？|{Q}かご存じですか？|{Q}なんでしょうね？|{Q}か気になっています。",
    ),
}
# aspect: (English noun phrases, English questions, Japanese noun phrases, Japanese questions)
ASPECTS: dict[str, tuple[Split, Split, Split, Split]] = {
    "what": (
        _s("{X}|{X}|{X}|the topic {X}|the basics of {X}", "{X}|the essentials of {X}"),
        _s("What {is} {X}|What exactly {is} {X}|Who or what {is} {X}", "What kind of thing {is} {X}"),
        _s("{X}|{X}|{X}|{X}の基本|{X}のこと", "{X}|{X}の概要"),
        _s("{X}は何|{X}とは何|{X}ってどんなもの", "{X}はどういうもの"),
    ),
    "where": (
        _s("the location of {X}|where to find {X}", "the place of {X}|the whereabouts of {X}"),
        _s(
            "Where {is} {X}|Where can I find {X}|In which place {is} {X}|Where {do} one find {X}",
            "Where would I find {X}|In what area {is} {X}",
        ),
        _s("{X}の場所|{X}がある所|{X}のある場所", "{X}の所在地|{X}の位置"),
        _s(
            "{X}はどこ|{X}はどこにあるの|{X}の場所はどこ|どこに行けば{X}が見られるの",
            "{X}はどのあたり|{X}があるのはどこ",
        ),
    ),
    "history": (
        _s(
            "the history of {X}|the origin of {X}|the past of {X}|how {X} began",
            "the early days of {X}|the beginnings of {X}",
        ),
        _s(
            "What is the history of {X}|How did {X} begin|When did {X} begin|What happened to {X} in the past|"
            "How old {is} {X}",
            "What is the story behind {X}|Since when {is} {X} known",
        ),
        _s("{X}の歴史|{X}の起源|{X}の始まり|{X}の昔", "{X}の由来|{X}の成り立ち"),
        _s(
            "{X}の歴史は何|{X}はいつ始まったの|{X}はいつから|{X}の起源はいつ|{X}は昔どうだったの",
            "{X}はいつごろからあるの|{X}の成り立ちはどう",
        ),
    ),
    "season": (
        _s("the best season for {X}|the best time for {X}", "the right months for {X}"),
        _s(
            "When is the best time for {X}|What is the best season for {X}|When should I see {X}|"
            "Which season is good for {X}",
            "Which time of the year suits {X}",
        ),
        _s("{X}の季節|{X}の時期|{X}に良い季節", "{X}の見ごろ|{X}のシーズン"),
        _s(
            "{X}に良い季節はいつ|{X}はいつがおすすめ|{X}の時期はいつ|{X}はいつが一番",
            "{X}を楽しむならいつ|{X}の見ごろはいつ",
        ),
    ),
    "do": (
        _s("things to do in {X}|the sights of {X}|sightseeing and {X}|the attractions of {X}", "activities around {X}"),
        _s(
            "What can I do in {X}|What can you see in {X}|What is there to do with {X}|What should I visit in {X}|"
            "How do people enjoy {X}",
            "What {is} {X} like for a visit|How would one enjoy {X}",
        ),
        _s("{X}の楽しみ方|{X}の見どころ|{X}の観光|{X}でできること", "{X}の名所|{X}の過ごし方"),
        _s(
            "{X}では何ができるの|{X}の見どころは何|{X}はどう楽しむの|{X}で何をするの",
            "{X}では何を楽しめるの|{X}ですることは何",
        ),
    ),
    "food": (
        _s("the food of {X}|food and {X}|the diet of {X}|what {X} eat", "meals and {X}"),
        _s(
            "What food belongs to {X}|What {do} {X} eat|What is eaten in {X}|What is the food of {X}|"
            "Which food is typical of {X}",
            "What kind of food goes with {X}|What is on the menu of {X}",
        ),
        _s("{X}の食べ物|{X}の食事|{X}の食べるもの|{X}の名物料理", "{X}の食|{X}のごはん"),
        _s(
            "{X}の食べ物は何|{X}は何を食べるの|{X}の名物は何|{X}の食事は何",
            "{X}ではどんなものを食べるの|{X}のごはんは何",
        ),
    ),
    "why": (
        _s(
            "the reason {X} {is} special|the importance of {X}|the fame of {X}|why {X} {is} special",
            "the significance of {X}",
        ),
        _s(
            "Why {is} {X} famous|Why {is} {X} special|Why {is} {X} important|Why do people like {X}|"
            "What is special about {X}",
            "What makes {X} so special|Why do people care about {X}",
        ),
        _s("{X}が有名な理由|{X}の特徴|{X}の魅力|{X}が大切な理由", "{X}の良さ|{X}の特別な点"),
        _s(
            "{X}はなぜ有名|{X}はなぜ人気|{X}はなぜ大切|{X}の魅力は何|{X}の特徴は何",
            "{X}はどうして特別|{X}が注目されるのはなぜ",
        ),
    ),
    "how": (
        _s(
            "how {X} work|the way {X} work|the method of {X}|the making of {X}|how {X} {is} done",
            "the mechanism of {X}|the inner workings of {X}",
        ),
        _s(
            "How {do} {X} work|How {is} {X} made|How does it work with {X}|How {do} {X} do it|What is the method of {X}",
            "By what means {do} {X} work|In what way {do} {X} function",
        ),
        _s("{X}の仕組み|{X}の方法|{X}の作り方|{X}の原理", "{X}のメカニズム|{X}のやり方"),
        _s(
            "{X}の仕組みは何|{X}はどうやって作るの|{X}はどのように働くの|{X}はどういう仕組み",
            "{X}はどうなっているの|{X}の原理は何",
        ),
    ),
    "kinds": (
        _s("the kinds of {X}|the types of {X}|the varieties of {X}|different {X}", "the sorts of {X}|the range of {X}"),
        _s(
            "What kinds of {X} are there|Which types of {X} exist|How many kinds of {X} are there|"
            "What varieties of {X} are there",
            "Which sorts of {X} can one find|What forms of {X} exist",
        ),
        _s("{X}の種類|{X}の分類|いろいろな{X}|{X}の仲間", "{X}のタイプ|{X}のバリエーション"),
        _s(
            "{X}の種類は何|{X}にはどんな種類があるの|{X}は何種類|{X}にはどんなものがあるの",
            "{X}はどう分かれるの|{X}のタイプには何があるの",
        ),
    ),
    "use": (
        _s("the use of {X}|the uses of {X}|what {X} {is} used for|the purpose of {X}", "the applications of {X}"),
        _s(
            "What {is} {X} used for|What {is} {X} good for|How do people use {X}|What is the use of {X}",
            "For which tasks {is} {X} useful|To what end do people use {X}",
        ),
        _s("{X}の使い道|{X}の用途|{X}の使い方|{X}の役割", "{X}の活用|{X}の使われ方"),
        _s(
            "{X}は何に使うの|{X}は何の役に立つの|{X}の用途は何|{X}はどう使うの", "{X}はどんな場面で使うの|{X}の役割は何"
        ),
    ),
    "eat": (
        _s("how to eat {X}|the way to eat {X}|eating {X}", "the manners of eating {X}"),
        _s(
            "How do I eat {X}|How {is} {X} eaten|How should one eat {X}|What is the way to eat {X}",
            "In which manner {is} {X} eaten",
        ),
        _s("{X}の食べ方|{X}の味わい方|{X}を食べる作法", "{X}のいただき方"),
        _s("{X}はどう食べるの|{X}の食べ方は何|{X}はどうやって食べるの", "{X}はどのようにいただくの"),
    ),
    "num": (
        _s("the key figure of {X}", "the main figure of {X}"),
        _s("", ""),
        _s("{X}の数字", "{X}の主な数字"),
        _s("", ""),
    ),
}
FOLLOW_UPS: dict[str, tuple[str, str]] = {
    "where": ("Where is that?|Where can I find it?|And where?|What about its location?|Where are they found?",
              "どこですか？|それはどこですか？|場所は？|どこにあるの？|どこで見られますか？"),
    "history": ("What about its history?|And its history?|When did it begin?|How did it start?|Is it old?|"
                "Tell me the history.|Where does it come from?",
                "歴史は？|それはいつからですか？|いつ始まったのですか？|その歴史を教えて|起源は？|昔はどうでしたか？"),
    "season": ("When is the best time?|Which season is best for it?|And when should I see it?|What about the season?",
               "いつがおすすめですか？|それはいつですか？|季節は？|時期はいつ？|いつが一番いいですか？"),
    "do": ("What can I do there?|What is there to see?|And the sights?|How do people enjoy it?",
           "何ができますか？|見どころは？|そこで何をしますか？|どう楽しみますか？"),
    "food": ("What about its food?|And the food?|What do they eat?|What is the food like?|What about food there?",
             "食べ物は？|何を食べますか？|その食べ物について教えて|名物は？|食事はどうですか？"),
    "why": ("Why is it famous?|Why is that special?|What is special about it?|And why do people like it?|Why is it important?",
            "なぜ有名なのですか？|それはなぜ人気ですか？|魅力は？|特徴は？|どうして大切なのですか？"),
    "how": ("How does it work?|How is it made?|And how does that work?|How do they do it?",
            "どういう仕組みですか？|どうやって作りますか？|仕組みは？|作り方は？|どのように働きますか？"),
    "kinds": ("What kinds are there?|Which types exist?|And the varieties?|Are there different kinds?",
              "どんな種類がありますか？|種類は？|何種類ありますか？|いろいろありますか？"),
    "use": ("What is it used for?|And what is it good for?|How do people use it?|What are its uses?",
            "何に使いますか？|用途は？|それは何の役に立ちますか？|使い道は？"),
    "eat": ("How do I eat it?|How is it eaten?|And how should one eat it?",
            "どうやって食べますか？|食べ方は？|それはどう食べるの？"),
    "more": ("Tell me more.|More, please.|Go on.|Can you tell me more?|What else?|Anything else?|Continue.|"
             "Tell me more about it.|And then?|More details please",
             "もっと教えて|もっと詳しく|続けてください。|ほかには？|他に何かありますか？|続きをお願いします。|もっと知りたいです。|それから？"),
}  # fmt: skip
# New sentences around words that the training knows: without any other text the model can't know a new word.
HELD_FOLLOW_UPS: dict[str, tuple[str, str]] = {
    "where": ("And where would that be?|Where exactly is it found?", "それって、どこにあるんですか？|では、場所はどこでしょう？"),
    "history": ("So how did it all begin?|And what about the history of that?", "では、歴史はどうですか？|それはいつ始まったんでしょうか？"),
    "season": ("So what is the best season for that?|And when is a good time?", "では、一番いい季節はいつでしょう？|おすすめの時期はいつですか？"),
    "do": ("So what can I see and do there?|And what do people do there?", "では、そこで何ができるのでしょう？|そこの見どころは何ですか？"),
    "food": ("And what about the food there, please?|So what food do they eat?", "では、食べ物はどうでしょう？|それで、何を食べるのですか？"),
    "why": ("So why is it so famous?|And why exactly is that special?", "では、なぜ有名なんでしょう？|それで、魅力は何ですか？"),
    "how": ("So how does all that work?|And how exactly is that made?", "それはどんな仕組みなんでしょう？|では、どうやって作るのですか？"),
    "kinds": ("So what kinds of it are there?|And which types are there?", "それにはどんな種類があるんですか？|では、種類は何ですか？"),
    "use": ("So what do people use it for?|And what exactly is it used for?", "それは何に使うのでしょう？|では、用途は何ですか？"),
    "eat": ("So how should I eat that?|And how do people eat it?", "では、それはどう食べるのでしょう？|それの食べ方は何ですか？"),
    "more": ("Could you tell me a bit more?|Please tell me more about that.", "もう少し詳しく教えてください。|さらに続けてください。"),
}  # fmt: skip


def held_pair(topic: Topic, aspect: str) -> bool:
    """Whether questions on this (topic, aspect) pair are kept for the evaluation."""
    tagged = [a for a in topic.aspects if a not in ("what", "num")]
    return aspect in tagged and tagged.index(aspect) == topic.index % len(tagged)


def _choose(rng: random.Random, split: Split, held: bool) -> str:
    return rng.choice(split[1] if held else split[0])


def fill(text: str, topic: Topic, name: str) -> str:
    plural = topic.plural
    return (
        text.replace("{is}", "are" if plural else "is").replace("{do}", "do" if plural else "does").replace("{X}", name)
    )


def question(rng: random.Random, topic: Topic, aspect: str, lang: str, held: bool = False) -> str:
    """One wording of a question on an aspect of a topic."""
    name = rng.choice(topic.names[lang][:1] * 3 + topic.names[lang])
    offset = 0 if lang == "en" else 2
    nouns, questions = ASPECTS[aspect][offset], ASPECTS[aspect][offset + 1]
    if aspect == "num":
        core = rng.choice(topic.number_questions[lang])
        text = _wrap_question(rng, fill(core, topic, name), lang, held)
    elif rng.random() < (0.35 if aspect == "what" else 0.6):
        text = _wrap_question(rng, fill(_choose(rng, questions, held), topic, name), lang, held)
    else:
        noun = fill(_choose(rng, nouns, held), topic, name)
        text = _choose(rng, WRAPPERS[lang], held).replace("{N}", noun)
    return dress(rng, text, lang, held)


def _wrap_question(rng: random.Random, core: str, lang: str, held: bool) -> str:
    wrapper = _choose(rng, QUESTION_WRAPPERS[lang], held)
    if lang == "ja" and core.endswith(("の", "いつ", "どこ", "いくつ", "は")):
        wrapper = rng.choice(["{Q}？", "{Q}ですか？"] if not core.endswith("は") else ["{Q}？", "{Q}"])
        if held:
            wrapper = rng.choice(["{Q}でしょう？", "{Q}かな？"] if not core.endswith("は") else ["{Q}？"])
    if not wrapper.startswith("{Q}") and lang == "en":
        core = core[0].lower() + core[1:]
    return wrapper.replace("{Q}", core)


def noun_question(rng: random.Random, noun: str, lang: str, held: bool = False) -> str:
    """A question about a bare noun, worded as a general question on a topic is."""
    if rng.random() < 0.3:
        forms = {
            "en": "What is {X}?|How is {X} made?|Where is {X}?|What is the history of {X}?|Why is {X} famous?|"
            "When did {X} begin?|How much is {X}?|Who invented {X}?|How does {X} work?|How many {X} are there?|"
            "Tell me about the kinds of {X}|What is {X} used for?|How big is {X}?",
            "ja": "{X}は何ですか？|{X}はどこにありますか？|{X}の歴史は？|{X}はなぜ有名ですか？|{X}の作り方は？|"
            "{X}はいくらですか？|{X}は誰が作ったの？|{X}の仕組みを教えて|{X}の種類は？|{X}は何に使うの？|{X}の大きさは？",
        }
        return dress(rng, rng.choice(forms[lang].split("|")).replace("{X}", noun), lang, held)
    return dress(rng, _choose(rng, WRAPPERS[lang], held).replace("{N}", noun), lang, held)


def dress(rng: random.Random, text: str, lang: str, held: bool = False) -> str:
    """Adds opener and closer, then now and then sloppy case or punctuation or a typing error."""
    opener, closer = _choose(rng, OPENERS[lang], held), _choose(rng, CLOSERS[lang], held)
    if len(text) < 4 and rng.random() < 0.5:
        opener = closer = ""
    if opener and not opener.endswith(("! ", ". ", ": ")) and lang == "en":
        text = text[0].lower() + text[1:]
    if closer and lang == "ja" and text[-1] not in "。？！":
        closer = "。" + closer
    if closer and lang == "en":
        sentence = closer[1].isupper()
        text = text if sentence and text[-1] in ".?!" else text.rstrip(".?!") + ("." if sentence else "")
        closer = closer if sentence or closer[-1] in ".!" else closer + rng.choice(("", ".", "?"))
    return _sloppy(rng, (opener + text + closer).strip(), lang)


def _sloppy(rng: random.Random, text: str, lang: str) -> str:
    roll = rng.random()
    if lang == "en" and roll < 0.10:
        return text.lower()
    if roll < 0.15:
        return text.rstrip(".?!。？！") or text
    if lang == "en" and roll < 0.17:
        return text.upper()
    if roll < 0.20:
        return text + rng.choice(("!", "!!", "??", "...")) if lang == "en" else text + rng.choice("！…。")
    if lang == "en" and roll < 0.24 and len(text) > 12:
        at = rng.randrange(1, min(10, len(text) - 2))
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if lang == "en" and roll < 0.27:
        return text[0].upper() + text[1:]
    return text
