"""Passages with made-up facts, questions on them, and the prompt shapes of common RAG code.

A passage is a list of sentences "entity + relation + value"; the answer quotes the sentence that
holds the value. Entities, values and most attribute words are random, so that the model has to
copy instead of remembering. Shapes follow the default prompts of LangChain and LlamaIndex.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import scrambled
from facts import topics
from unknown import _KANJI, pseudo_word

KINDS = {
    "en": [
        "Museum",
        "Company",
        "Cafe",
        "Festival",
        "Bridge",
        "Park",
        "Village",
        "School",
        "Hotel",
        "Library",
        "Tower",
        "Station",
        "Farm",
        "Theater",
        "Institute",
        "Lake",
        "Robot",
        "Ship",
        "Castle",
        "Bakery",
        "Shop",
        "Clinic",
        "Project",
        "Engine",
        "Foundation",
    ],
    "ja": [
        "美術館",
        "株式会社",
        "喫茶店",
        "祭り",
        "大橋",
        "公園",
        "村",
        "学校",
        "旅館",
        "図書館",
        "タワー",
        "駅",
        "農園",
        "劇場",
        "研究所",
        "湖",
        "号",
        "城",
        "商店",
        "工房",
        "病院",
        "計画",
        "財団",
        "センター",
    ],
}
# (English sentence, English questions, Japanese sentence, Japanese questions, kind of value)
RELATIONS: list[tuple[str, str, str, str, str]] = [
    ("{E} was founded in {V}.", "When was {E} founded|In which year was {E} founded|When did {E} start",
     "{E}は{V}に設立されました。", "{E}はいつ設立されましたか|{E}の設立はいつ|{E}ができたのはいつですか", "year"),
    ("{E} opened in {V}.", "When did {E} open|In what year did {E} open|Since when has {E} been open",
     "{E}は{V}に開館しました。", "{E}はいつ開館しましたか|{E}が開いたのはいつ", "year"),
    ("{E} is located in {V}.", "Where is {E}|Where is {E} located|In which town is {E}",
     "{E}は{V}にあります。", "{E}はどこにありますか|{E}の場所は|{E}がある町は", "place"),
    ("A ticket for {E} costs {V}.", "How much is a ticket for {E}|What does {E} cost|What is the ticket price of {E}",
     "{E}の入場料は{V}です。", "{E}の入場料はいくらですか|{E}はいくらで入れますか|{E}の料金は", "price"),
    ("{E} opens at {V}.", "At what time does {E} open|When does {E} open in the morning",
     "{E}は{V}に開きます。", "{E}は何時に開きますか|{E}の開始時刻は", "time"),
    ("{E} closes at {V}.", "At what time does {E} close|When does {E} close|Until when is {E} open",
     "{E}は{V}に閉まります。", "{E}は何時に閉まりますか|{E}は何時までですか", "time"),
    ("The director of {E} is {V}.", "Who is the director of {E}|Who leads {E}|Who runs {E}",
     "{E}の館長は{V}さんです。", "{E}の館長は誰ですか|{E}の責任者は", "person"),
    ("{E} was built by {V}.", "Who built {E}|By whom was {E} built|Who made {E}",
     "{E}は{V}さんが作りました。", "{E}を作ったのは誰ですか|{E}は誰が作りましたか", "person"),
    ("{E} has {V} visitors a year.", "How many visitors does {E} have|How many people visit {E}",
     "{E}の来場者は年間{V}人です。", "{E}の来場者は何人ですか|{E}には年間何人来ますか", "number"),
    ("{E} has {V} employees.", "How many employees does {E} have|How many people work at {E}",
     "{E}の社員は{V}人です。", "{E}の社員は何人ですか|{E}では何人働いていますか", "number"),
    ("{E} is {V} meters long.", "How long is {E}|What is the length of {E}",
     "{E}の長さは{V}メートルです。", "{E}の長さは|{E}は何メートルですか", "number"),
    ("{E} takes place on {V}.", "When does {E} take place|On which day is {E}|What is the date of {E}",
     "{E}は{V}に行われます。", "{E}はいつ行われますか|{E}の日程は|{E}の日付は", "date"),
    ("{E} is closed on {V}.", "On which day is {E} closed|When is {E} closed",
     "{E}の定休日は{V}です。", "{E}の定休日はいつですか|{E}の休みは", "day"),
    ("The phone number of {E} is {V}.", "What is the phone number of {E}|How can I call {E}",
     "{E}の電話番号は{V}です。", "{E}の電話番号は|{E}の電話は何番ですか", "phone"),
    ("{E} is famous for {V}.", "What is {E} famous for|What is {E} known for",
     "{E}は{V}で有名です。", "{E}は何で有名ですか|{E}の名物は", "thing"),
]  # fmt: skip
HELD_QUESTIONS = {
    "en": {"year": "Could you say in what year {E} began?", "place": "In what place can I find {E}?",
           "price": "How expensive is a ticket for {E}?", "time": "What hour is given for {E}?",
           "person": "Whose name is given for {E}?", "number": "What number is given for {E}?",
           "date": "What date is set for {E}?", "day": "Which weekday is {E} shut?",
           "phone": "Under which number can {E} be reached?", "thing": "Why do people know {E}?"},
    "ja": {"year": "{E}は何年からありますか？", "place": "{E}はどの町にあるのでしょう？", "price": "{E}に入るにはいくらかかりますか？",
           "time": "{E}の時刻を教えてください。", "person": "{E}に関わる人の名前は？", "number": "{E}の数は何と書いてありますか？",
           "date": "{E}の日取りを教えてください。", "day": "{E}が休むのは何曜日ですか？", "phone": "{E}の連絡先の番号は？",
           "thing": "{E}は何で知られていますか？"},
}  # fmt: skip
# Questions that ask for a kind of value. They are clear only where the text has one such value for the entity.
KIND_QUESTIONS = {
    "en": {
        "year": "What year is given for {E}?|{E} began in which year?|The year of {E}?|What year did {E} begin?",
        "place": "What place is {E} in?|Place of {E}?|Where can I find {E}?|The town of {E}?",
        "price": "Is {E} expensive?|How expensive is {E}?|What price is named for {E}?|Price of {E}?",
        "time": "What time is given for {E}?|Which hour does the text give for {E}?|The time of {E}?",
        "person": "Which person is named for {E}?|What name is given for {E}?|Whose is {E}?",
        "number": "Which number is given for {E}?|How many, for {E}?|What figure stands for {E}?",
        "date": "Which date is given for {E}?|The date set for {E}?|What date has {E}?",
        "day": "Which day is {E} shut?|On what weekday is {E} closed?|When is {E} shut?",
        "phone": "What number can reach {E}?|How can {E} be reached?|Which number do I call for {E}?",
        "thing": "What do people know {E} for?|Why is {E} known?|Why do people talk about {E}?",
    },
    "ja": {
        "year": "何年に{E}はできましたか？|{E}は何年から？|{E}の年は？|{E}は何年のことですか？",
        "place": "{E}はどの町ですか？|どの町に{E}がありますか？|{E}のある町は？|{E}はどの辺りでしょう？",
        "price": "{E}にはいくらかかりますか？|{E}に入ると、いくら？|いくらで{E}に入る？|{E}の値段は？",
        "time": "{E}の時刻は？|{E}の時刻は何時ですか？|{E}は何時のことですか？",
        "person": "{E}の人の名前は？|{E}に関わる人は誰？|誰の名前が{E}にありますか？",
        "number": "{E}の数は？|{E}の数はいくつ？|{E}は何と書いてありますか？",
        "date": "{E}の日取りは？|{E}はどの日ですか？|日取りは{E}の場合いつ？",
        "day": "{E}は何曜日に休む？|{E}が休むのはいつ？|何曜日が{E}の休み？",
        "phone": "{E}の連絡先は？|{E}の番号は？|連絡先の番号は、{E}では？",
        "thing": "{E}は何で知られる？|{E}が知られているのはなぜ？|何で{E}は知られていますか？",
    },
}
ATTRIBUTES = {
    "en": "color,code,motto,owner,budget,mascot,prize,symbol,weight,password,nickname,sponsor,material,engine,language,"
    "dish,drink,song,flower,animal,leader,captain,address,rule,target,score,deadline,version,license,currency,limit,"
    "temperature,speed,capacity,height,width,age,battery,warranty,supplier,brand,style,topic,plan,gift,tool,fee,tax,rate,name",
    "ja": "色,合言葉,所有者,予算,マスコット,賞品,記号,重さ,暗証番号,愛称,後援者,材料,言語,料理,飲み物,歌,花,動物,代表,船長,住所,規則,目標,得点,"
    "締め切り,版,通貨,上限,温度,速さ,容量,高さ,幅,年齢,電池,保証期間,仕入先,銘柄,様式,主題,贈り物,道具,手数料,税率,名前,担当者,会場,期間,対象,送料",
}
THINGS = {
    "en": "blue lamps,wooden boats,apple cakes,silver coins,old maps,paper kites,red tea,stone masks,soft bread,green soap,"
    "loud drums,tall roses,warm coats,black pens,small clocks,honey wine,white horses,salt fish,glass beads,iron gates",
    "ja": "青いランプ,木の舟,りんごの菓子,銀の硬貨,古い地図,紙の凧,赤い茶,石の面,丸いパン,緑の石けん,大きな太鼓,白いばら,暖かい上着,黒い筆,小さな時計,"
    "甘い酒,白い馬,塩の魚,硝子の玉,鉄の門",
}
# What stands in a value's place where the text does not say it. The answer begins as it would with the value, so that
# the model decides where it looks the value up, and not before.
NOT_STATED = {
    "year": "a year that the text does not say", "place": "a place that the text does not say",
    "number": "(the text does not say how many)", "price": "an amount that the text does not say",
    "time": "a time that the text does not say", "person": "someone (the text does not say who)",
    "date": "a date that the text does not say", "day": "a day that the text does not say",
    "phone": "a number that the text does not say", "thing": "something that the text does not say",
    "code": "a value that the text does not say",
}  # fmt: skip
NOT_STATED_JA = "文中には書かれていません。"


def _not_stated(fact: _Fact, lang: str) -> str:
    """The sentence of a fact, with a remark in the place of its value."""
    if lang == "en":
        return fact.sentence.replace(fact.value, NOT_STATED[fact.kind])
    return fact.sentence.partition(fact.value)[0] + NOT_STATED_JA


@dataclass(frozen=True)
class Item:
    """A question, what a right answer says and the value in it; None where the text does not say it."""

    question: str
    answer: str
    value: str | None


@dataclass(frozen=True)
class PassageTask:
    """Given text in chunks and one or more questions on it."""

    chunks: list[str]
    items: list[Item]
    lang: str


@dataclass(frozen=True)
class _Fact:
    entity: str
    sentence: str
    question: str
    value: str
    kind: str
    by_kind: bool

    @property
    def key(self) -> str:
        return self.sentence.replace(self.value, "")


def _value(rng: random.Random, kind: str, lang: str) -> str:
    n = rng.randrange(2, 10 ** rng.choice((2, 3, 4, 4, 5)))
    hour, minute = rng.randrange(5, 23), rng.choice(("00", "15", "30", "45"))
    if lang == "en":
        months = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ]
        days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
        person = f"{pseudo_word(rng, 'en')} {pseudo_word(rng, 'en')}"
        return {
            "year": str(rng.randrange(1500, 2030)), "place": pseudo_word(rng, "en"), "number": f"{n:,}",
            "price": rng.choice((f"{n:,} yen", f"{n:,} dollars", f"{n} euros")), "time": f"{hour}:{minute}",
            "person": person, "date": f"{rng.choice(months)} {rng.randrange(1, 29)}", "day": rng.choice(days),
            "phone": f"{rng.randrange(100, 999)}-{rng.randrange(1000, 9999)}", "thing": rng.choice(THINGS["en"].split(",")),
        }[kind]  # fmt: skip
    surname = "".join(rng.choice(_KANJI) for _ in range(2))
    place = rng.choice((pseudo_word(rng, "ja"), surname)) + rng.choice("市町村区")
    return {
        "year": f"{rng.randrange(1500, 2030)}年", "place": place, "number": rng.choice((f"{n:,}", str(n))),
        "price": f"{n:,}円" if rng.random() < 0.5 else f"{n}円", "time": f"{hour}時{rng.choice(('', '半', '15分', '45分'))}",
        "person": surname + rng.choice(("", pseudo_word(rng, "ja"))), "day": rng.choice("月火水木金土日") + "曜日",
        "date": f"{rng.randrange(1, 13)}月{rng.randrange(1, 29)}日",
        "phone": f"{rng.randrange(100, 999)}-{rng.randrange(1000, 9999)}", "thing": rng.choice(THINGS["ja"].split(",")),
    }[kind]  # fmt: skip


def _entity(rng: random.Random, lang: str) -> str:
    name, kind = pseudo_word(rng, lang), rng.choice(KINDS[lang])
    if rng.random() < 0.06:  # what the text says about a place counts, not what is known about its namesake
        name = rng.choice([t for t in topics() if t.category == "place"]).name(lang)
    if lang == "ja":
        return name + kind if rng.random() < 0.85 else name
    return rng.choice((f"{name} {kind}", f"the {name} {kind}", f"the {name} {kind}", name))


def _fact(rng: random.Random, entity: str, lang: str, held: bool) -> _Fact:
    """A sentence on an entity and a question for its value."""
    if rng.random() < 0.45 and not held:
        attribute = rng.choice(ATTRIBUTES[lang].split(","))
        if rng.random() < 0.2:
            attribute = pseudo_word(rng, lang).lower()
        kind = rng.choice(("person", "number", "thing", "place", "date", "price", "year", "code"))
        value = str(rng.randrange(10, 99999)) if kind == "code" else _value(rng, kind, lang)
        forms = {
            "en": ("The {A} of {E} is {V}.", "What is the {A} of {E}?|Tell me the {A} of {E}|Which {A} does {E} have?|"
                   "{A} of {E}?|I need the {A} of {E}."),
            "ja": ("{E}の{A}は{V}です。", "{E}の{A}は何ですか？|{E}の{A}を教えて|{E}の{A}は？|{E}の{A}を知りたいです。|{E}の{A}はどうなっていますか？"),
        }[lang]  # fmt: skip
        fills = {"{A}": attribute, "{E}": entity, "{V}": value}
        question = _fill(rng.choice(forms[1].split("|")), fills)
        if rng.random() < 0.15:
            core = f"{entity} {attribute}" if lang == "en" else f"{entity}の{attribute}"
            question = scrambled.around(rng, core, lang)
        return _Fact(entity, _fill(forms[0], fills), question, value, kind, False)
    row = rng.choice(RELATIONS)
    value, kind = _value(rng, row[4], lang), row[4]
    fills = {"{E}": entity, "{V}": value}
    question, by_kind = rng.choice(row[1 if lang == "en" else 3].split("|")) + ("?" if lang == "en" else "？"), False
    if held and kind not in ("time", "person", "number"):
        question, by_kind = HELD_QUESTIONS[lang][kind], True
    elif not held and rng.random() < 0.4:
        question, by_kind = rng.choice(KIND_QUESTIONS[lang][kind].split("|")), True
    question = _fill(question, fills)
    if not held and rng.random() < 0.15:
        question = scrambled.around(rng, question.rstrip("?？"), lang)
    return _Fact(entity, _fill(row[0 if lang == "en" else 2], fills), question, value, kind, by_kind)


def _fill(form: str, fills: dict[str, str]) -> str:
    for slot, value in fills.items():
        form = form.replace(slot, value)
    return form[0].upper() + form[1:]


def _filler(rng: random.Random, lang: str) -> str:
    """A sentence that answers nothing: from the fact base or made up."""
    if rng.random() < 0.4:
        topic = rng.choice(topics())
        return rng.choice([s for a, s in topic.sentences if a == "-"])[lang]
    forms = {
        "en": "Many people like {E} very much.|{E} can be seen from far away.|There are plans to change {E} soon.|"
        "Guests often write about {E} in letters.|{E} is quiet in winter and busy in summer.|"
        "A short film about {E} was shown on television.|Some visitors come to {E} by train.",
        "ja": "{E}は多くの人に愛されています。|{E}は遠くからもよく見えます。|{E}は近く改装される予定です。|{E}のことを手紙に書く人もいます。|"
        "{E}は冬は静かで、夏はにぎやかです。|{E}を紹介する番組が放送されました。|{E}へは電車で来る人が多いです。",
    }
    return _fill(rng.choice(forms[lang].split("|")), {"{E}": _entity(rng, lang)})


def _lead_in(rng: random.Random, lang: str) -> str:
    """A few words before a sentence; the answer leaves them out."""
    forms = {
        "en": "Please note: |According to the guide: |Today: |News: |- |* |1. ",
        "ja": "なお、|現在、|案内によると、|また、|・|お知らせ：|1. ",
    }
    return rng.choice(forms[lang].split("|"))


def passage_task(rng: random.Random, lang: str, size: int, held: bool = False, questions: int = 1) -> PassageTask:
    """Questions over about `size` sentences; one time in eight (in training, four) the answer isn't there."""
    entities = [_entity(rng, lang) for _ in range(max(2, size // 3))]
    asked: list[_Fact] = []
    body: list[str] = []
    seen: set[str] = set()
    by_kind: set[tuple[str, str]] = set()

    def fits(fact: _Fact) -> bool:
        return fact.key not in seen and (fact.entity, fact.kind) not in by_kind

    kinds: set[tuple[str, str]] = set()
    items: list[Item] = []
    for _ in range(questions):
        while True:
            fact = _fact(rng, rng.choice(entities), lang, held)
            if fits(fact) and not (fact.by_kind and (fact.entity, fact.kind) in kinds):
                break
        seen.add(fact.key)
        kinds.add((fact.entity, fact.kind))
        if fact.by_kind:
            by_kind.add((fact.entity, fact.kind))
        asked.append(fact)
        if rng.random() < (0.125 if held else 0.2):
            items.append(Item(fact.question, _not_stated(fact, lang), None))
        else:
            body.append(fact.sentence)
            items.append(Item(fact.question, fact.sentence, fact.value))
    while len(body) < size:
        if rng.random() < 0.3:
            body.append(_filler(rng, lang))
            continue
        entity = rng.choice(asked).entity if rng.random() < 0.25 else rng.choice(entities)
        other = _fact(rng, entity, lang, False)
        if fits(other):
            seen.add(other.key)
            body.append(other.sentence)
    if rng.random() < 0.25:
        at = rng.randrange(len(body) or 1)
        body[at:] = [_lead_in(rng, lang) + text if rng.random() < 0.4 else text for text in body[at:]]
    rng.shuffle(body)
    joint = " " if lang == "en" else ""
    parts = rng.choice((1, 1, 2, 3, 4)) if size > 3 else 1
    cut = max(1, -(-len(body) // parts))
    chunks = [joint.join(body[i : i + cut]) for i in range(0, len(body), cut)]
    return PassageTask(chunks, items, lang)


def shape(rng: random.Random, item: PassageTask) -> tuple[str | None, str]:
    """(system text or None, user text) in one of the usual prompt shapes."""
    context, question = rng.choice(("\n\n", "\n")).join(item.chunks), item.items[0].question
    meta = rng.random() < 0.3
    if meta:
        context = "\n\n".join(
            f"page_label: {rng.randrange(1, 99)}\nfile_path: data/{pseudo_word(rng, 'en').lower()}.txt\n\n{c}"
            for c in item.chunks
        )
    if item.lang == "en":
        return rng.choice((
            (None, f"Context information is below.\n---------------------\n{context}\n---------------------\nGiven the "
             f"context information and not prior knowledge, answer the query.\nQuery: {question}\nAnswer: "),
            ("You are an expert Q&A system that is trusted around the world.\nAlways answer the query using the provided "
             "context information, and not prior knowledge.\nSome rules to follow:\n1. Never directly reference the given "
             "context in your answer.\n2. Avoid statements like 'Based on the context, ...' or 'The context information "
             "...' or anything along those lines.", f"Context information is below.\n---------------------\n{context}\n"
             "---------------------\nGiven the context information and not prior knowledge, answer the query.\n"
             f"Query: {question}\nAnswer: "),
            ("You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer "
             "the question. If you don't know the answer, say that you don't know. Use three sentences maximum and keep "
             f"the answer concise.\n\n{context}", question),
            (None, "Use the following pieces of context to answer the question at the end. If you don't know the answer, "
             f"just say that you don't know, don't try to make up an answer.\n\n{context}\n\nQuestion: {question}\nHelpful Answer:"),
            (None, "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to "
             "answer the question. If you don't know the answer, just say that you don't know. Use three sentences maximum "
             f"and keep the answer concise.\nQuestion: {question} \nContext: {context} \nAnswer:"),
            (f"Answer any use questions based solely on the context below:\n\n<context>\n{context}\n</context>", question),
            ("Answer the user's question from the context.\n\n" + context, question),
            (None, f"{context}\n\n{question}"), (None, f"Text: {context}\n\nQuestion: {question}"),
            (None, f"Read this: {context}\n{question}"), (None, f"Answer the question based only on the following context:\n{context}\n\nQuestion: {question}\n"),
        ))  # fmt: skip
    return rng.choice((
        (None, f"以下の文脈に基づいて質問に答えてください。\n\n{context}\n\n質問: {question}"),
        (None, f"以下の文脈に基づいて質問に答えてください。\n\n文脈:\n{context}\n\n質問: {question}\n回答:"),
        ("次の文書だけを使って質問に答えてください。分からない場合は分からないと答えてください。\n\n" + context, question),
        (f"あなたは質問応答のアシスタントです。以下の文脈を使って答えてください。\n\n{context}", question),
        (None, f"コンテキスト情報は以下のとおりです。\n---------------------\n{context}\n---------------------\n"
         f"事前知識ではなくコンテキスト情報を使って、質問に答えてください。\n質問: {question}\n回答: "),
        (None, f"Context information is below.\n---------------------\n{context}\n---------------------\nGiven the "
         f"context information and not prior knowledge, answer the query.\nQuery: {question}\nAnswer: "),
        ("あなたは親切なアシスタントです。参考資料:\n" + context, question), (None, f"{context}\n\n{question}"),
        ("You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer "
         f"the question. If you don't know the answer, say that you don't know.\n\n{context}", question),
        (None, f"資料：{context}\n\n上の資料によると、{question}"), (None, f"次の文章を読んで答えてください。\n{context}\n{question}"),
        (None, f"【資料】\n{context}\n\n【質問】\n{question}"),
    ))  # fmt: skip
