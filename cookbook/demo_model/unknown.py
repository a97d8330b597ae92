"""Things outside the fact base, so that the model learns to say that it doesn't know.

Nouns and tasks are written as (trained, held out). Pseudo-words are made on the fly.
"""

from __future__ import annotations

import random

NOUNS = {
    "en": (
        "Paris,London,New York,Berlin,Rome,Madrid,Beijing,Seoul,Cairo,Sydney,Moscow,Toronto,Brazil,France,Germany,"
        "Italy,China,India,Australia,Canada,Mexico,Egypt,Kenya,Spain,Russia,Fukuoka,Kobe,Nagoya,Hiroshima,Sendai,"
        "Nagasaki,Okinawa,Kagoshima,Niigata,Kanazawa,Mars,Venus,Jupiter,Saturn,Pluto,black holes,galaxies,comets,"
        "dogs,horses,cows,pigs,sheep,lions,tigers,bears,wolves,foxes,rabbits,mice,snakes,frogs,turtles,sharks,"
        "dolphins,penguins,owls,eagles,parrots,ants,spiders,butterflies,crabs,salmon,pizza,pasta,bread,cheese,butter,"
        "chocolate,coffee,beer,wine,hamburgers,curry,tempura,udon,soba,miso soup,rice,apples,bananas,oranges,lemons,"
        "grapes,tomatoes,potatoes,carrots,onions,guitars,violins,drums,flutes,trumpets,cars,buses,airplanes,ships,"
        "rockets,submarines,trams,motorcycles,trucks,computers,phones,robots,cameras,printers,televisions,radios,"
        "the internet,Python,Java,JavaScript,SQL,Linux,Windows,databases,algorithms,machine learning,neural networks,"
        "quantum physics,relativity,gravity,electricity,magnetism,chemistry,biology,algebra,geometry,calculus,"
        "statistics,logic,philosophy,psychology,economics,inflation,taxes,stocks,bitcoin,banks,insurance,law,politics,"
        "elections,democracy,the president,the prime minister,war,peace,religion,Christianity,Islam,Shakespeare,Mozart,"
        "Beethoven,Picasso,Einstein,Newton,Darwin,Napoleon,Caesar,Cleopatra,Gandhi,Lincoln,soccer,baseball,tennis,golf,"
        "basketball,hockey,chess,poker,judo,karate,kendo,swimming,running,yoga,skiing,movies,novels,poems,songs,theater,"
        "painting,photography,fashion,shoes,hats,jewelry,gold,silver,iron,copper,glass,plastic,concrete,wood,paper money,"
        "oil,coal,gas,nuclear power,wind power,climate change,pollution,rain,snow,clouds,thunder,tornadoes,earthquakes,"
        "tsunamis,volcanoes,deserts,rivers,the Amazon,the Nile,the Sahara,the Alps,Mount Everest,Antarctica,viruses,"
        "bacteria,vaccines,cancer,diabetes,the heart,the brain,bones,muscles,teeth,sleep,dreams,love,happiness,anger,"
        "fear,time travel,dinosaurs,dragons,unicorns,vampires,ghosts,the pyramids,the Eiffel Tower,the Great Wall,"
        "castles,bridges,tunnels,hospitals,schools,universities,libraries,post offices,police,firefighters,doctors,"
        "kimono,bonsai,ikebana,haiku,manga,anime,Pokemon,Nintendo,Toyota,Sony,Honda,samurai,ninja,geisha,shogi,karaoke,"
        "my cousin,my boss,my password,tomorrow's weather,the stock price,the lottery numbers,my homework,the news,"
        "sourdough,bagels,tacos,kimchi,pho,gelato,waffles,maple syrup,avocados,garlic,pepper,salt,sugar,vinegar,honeymoon",
        "Lisbon,Vienna,Norway,Peru,Neptune,nebulas,giraffes,kangaroos,hamsters,lobsters,pancakes,burritos,strawberries,"
        "cellos,helicopters,tractors,tablets,Ruby,cryptography,topology,thermodynamics,inheritance law,Tolstoy,Galileo,"
        "volleyball,surfing,opera,umbrellas,aluminium,solar eclipses of Uranus,hurricanes,glaciers,antibiotics,kidneys,"
        "zombies,Stonehenge,museums of Oslo,plumbers,sashimono,Sega,Yokohama,mortgages,your neighbor,train strikes",
    ),
    "ja": (
        "パリ,ロンドン,ニューヨーク,ベルリン,ローマ,北京,ソウル,カイロ,シドニー,モスクワ,ブラジル,フランス,ドイツ,イタリア,中国,インド,"
        "オーストラリア,カナダ,メキシコ,エジプト,ケニア,スペイン,ロシア,福岡,神戸,名古屋,広島,仙台,長崎,沖縄,鹿児島,新潟,金沢,横須賀,"
        "火星,金星,木星,土星,冥王星,ブラックホール,銀河,彗星,犬,馬,牛,豚,羊,ライオン,虎,熊,狼,狐,兎,鼠,蛇,蛙,亀,サメ,イルカ,ペンギン,"
        "フクロウ,鷲,オウム,蟻,蜘蛛,蝶,カニ,鮭,ピザ,パスタ,パン,チーズ,バター,チョコレート,コーヒー,ビール,ワイン,ハンバーガー,カレー,"
        "天ぷら,うどん,そば,味噌汁,米,りんご,バナナ,みかん,レモン,ぶどう,トマト,じゃがいも,にんじん,玉ねぎ,ギター,バイオリン,太鼓,笛,"
        "自動車,バス,飛行機,船,ロケット,潜水艦,バイク,トラック,コンピューター,電話,ロボット,カメラ,印刷機,テレビ,ラジオ,インターネット,"
        "パイソン,データベース,アルゴリズム,機械学習,量子力学,相対性理論,重力,電気,磁石,化学,生物学,代数,幾何,微分,統計,論理,哲学,心理学,"
        "経済,インフレ,税金,株,仮想通貨,銀行,保険,法律,政治,選挙,民主主義,大統領,総理大臣,戦争,平和,宗教,シェイクスピア,モーツァルト,"
        "ベートーベン,ピカソ,アインシュタイン,ニュートン,ナポレオン,織田信長,徳川家康,坂本龍馬,サッカー,野球,テニス,ゴルフ,バスケ,将棋,囲碁,"
        "柔道,空手,剣道,水泳,マラソン,ヨガ,スキー,映画,小説,詩,歌,演劇,絵画,写真,ファッション,靴,帽子,宝石,金,銀,鉄,銅,ガラス,石油,石炭,"
        "原子力,風力,気候変動,雨,雪,雲,雷,竜巻,地震,津波,火山,砂漠,川,アマゾン,アルプス,エベレスト,南極,ウイルス,細菌,ワクチン,がん,糖尿病,"
        "心臓,脳,骨,筋肉,歯,睡眠,夢,恋愛,幸福,怒り,恐竜,竜,吸血鬼,幽霊,ピラミッド,エッフェル塔,万里の長城,橋,病院,学校,大学,図書館,"
        "郵便局,警察,消防士,医者,着物,盆栽,生け花,俳句,漫画,アニメ,任天堂,トヨタ,侍,忍者,カラオケ,私のいとこ,上司,明日の天気,株価,"
        "宝くじの番号,宿題の答え,最新のニュース,餃子,焼肉,キムチ,納豆,わさび,塩,砂糖,胡椒,にんにく,醤油,味噌,日本酒,焼酎,抹茶ラテ",
        "リスボン,ウィーン,ノルウェー,ペルー,海王星,星雲,キリン,カンガルー,ハムスター,ロブスター,パンケーキ,いちご,チェロ,ヘリコプター,"
        "トラクター,暗号,位相幾何学,熱力学,相続法,トルストイ,ガリレオ,バレーボール,サーフィン,オペラ,傘,アルミニウム,台風,氷河,抗生物質,"
        "腎臓,ゾンビ,ストーンヘンジ,配管工,セガ,横浜,住宅ローン,隣の人,弁護士,豊臣秀次,桃,メロン,鯖,相模原,枕草子,算盤",
    ),
}
TASKS = {
    "en": (
        "Write a Python function that sorts a list.|Translate this sentence into French.|What is 12 times 17?|"
        "Solve the equation x + 3 = 7.|Write a poem about winter.|Book a table for two.|What is the weather tomorrow?|"
        "Who won the game last night?|Send an email to my boss.|Fix this code: print(1|Set an alarm for seven.|"
        "What time is it?|Play some music.|Who is the richest man?|Tell me my password.|Give me a recipe for lasagna.|"
        "How do I lose weight?|What is the meaning of life?|Which stock should I buy?|Draw a picture of a house.|"
        "Write an essay about freedom.|Who will be the next president?|How do I fix a flat roof?|Sing a song.|"
        "What is the capital of Mongolia?|Convert 5 miles to kilometers.|Summarize the news of today.|"
        "What did I eat yesterday?|How can I learn to drive?|Explain this error message: segmentation fault|"
        "Count to one hundred.|Spell the word necessary.|What is 2+2?|Give me a SQL query.|Call my mother.|"
        "How much money do I have?|Which phone is the best?|Make a plan for my wedding.|Correct my grammar.|a|x|0|???|asdf",
        "Write a shell script that renames files.|Translate hello into Spanish.|What is 81 divided by 9?|Order a taxi.|"
        "Who scored the goal?|Compose a love letter.|Which laptop should I get?|Turn on the lights.|"
        "How do I repair a washing machine?|Recommend a good thriller.",
    ),
    "ja": (
        "リストを並べ替えるプログラムを書いて|この文をフランス語に訳してください。|12かける17はいくつ？|冬の詩を書いてください。|"
        "二名で予約して|明日の天気は？|昨日の試合はどちらが勝った？|上司にメールを送って|このコードを直して|七時に起こして|今何時？|"
        "音楽をかけて|一番の金持ちは誰？|私のパスワードを教えて|ラザニアの作り方は？|どうすれば痩せますか？|人生の意味は？|どの株を買うべき？|"
        "家の絵を描いて|自由について作文を書いて|次の大統領は誰？|屋根の直し方は？|歌って|モンゴルの首都は？|5マイルは何キロ？|今日のニュースをまとめて|"
        "昨日何を食べたっけ？|運転を覚えるには？|このエラーは何？|百まで数えて|2たす2は？|母に電話して|一番いい電話はどれ？|"
        "結婚式の計画を立てて|文法を直して|次の文章を要約してください|価格はいくらですか|あ|絵文字|？？？",
        "ファイル名を変えるスクリプトを書いて|こんにちはをスペイン語に訳して|81割る9は？|タクシーを呼んで|点を入れたのは誰？|恋文を書いて|"
        "どのパソコンを買えばいい？|電気をつけて|洗濯機の直し方は？|面白い小説を勧めて",
    ),
}
_EN = "ba be bi bo bra cla cor da del dor fa fen fli ga gor gri ha hel jo ka kel kri la len lo lu ma mer mo na nel no "
_EN += "o pa per plo qua ra ren ri ro sa sel sha ska ta tel tho tri ul va vel vin wa wen xo ya zan zel zu"
_JA = "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワガギグゲゴザジズゼゾダデドバビブベボパピプペポ"
_KANJI = (
    "山川田村松本木林森石井上下中野原島崎藤高橋小大西東北南青白黒赤金銀福吉永長千百万花月星雪風雨海池沢谷岡坂清水浜津"
)


def pseudo_word(rng: random.Random, lang: str) -> str:
    """A made-up name; in Japanese katakana, now and then Chinese characters."""
    if lang == "en":
        word = "".join(rng.choice(_EN.split()) for _ in range(rng.choice((2, 2, 3, 3, 4))))
        return word.capitalize() + rng.choice(("", "", "", "n", "s", "x", "th", "k", "m"))
    if rng.random() < 0.35:
        return "".join(rng.choice(_KANJI) for _ in range(rng.choice((2, 2, 3))))
    word = "".join(rng.choice(_JA) for _ in range(rng.choice((2, 3, 3, 4, 5))))
    return word + rng.choice(("", "", "", "ン", "ー"))


def unknown_noun(rng: random.Random, lang: str, held: bool = False) -> str:
    """A noun that is no topic."""
    return rng.choice(NOUNS[lang][held].split(","))


def task(rng: random.Random, lang: str, held: bool = False) -> str:
    """A request that the model can't fulfil."""
    return rng.choice(TASKS[lang][held].split("|"))
