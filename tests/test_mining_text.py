"""Mining text: how documents are cut into pieces, and which pairs are left out."""

from collections import Counter
from dataclasses import replace

import pytest

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcpt.errors import UserError
from jaxcpt.mining.raw_document import RawDocument
from jaxcpt.mining.text import TextOptions, check_text_options, cut_pieces, mine_text

PLAIN = TextOptions(piece_chars=(20, 60), pairs_per_document=1000, languages=(), quality=False)
# Words, marks, quotes, every kind of white space, and letters of other scripts.
TEXTS = st.lists(
    st.sampled_from(
        ["one", "two.", "Three!", 'four."', "fünf?", "六。", "x" * 90, " ", "  ", "\n", "\n\n",
         "\t", "\r\n", "\u00a0", "\u2028", "\f", "…", "seven) ", "eight"]
    ),
    max_size=120,
).map(" ".join)  # fmt: skip


def mine(text, options):
    drops = Counter()
    return list(mine_text(RawDocument("d", text), drops, options)), drops


@settings(max_examples=300)
@given(
    text=TEXTS,
    gap=st.integers(0, 3),
    count=st.integers(1, 5),
    lengths=st.tuples(st.integers(1, 50), st.integers(0, 60)),
)
def test_pairs_are_slices_of_their_document(text, gap, count, lengths):
    shortest, longest = lengths[0], sum(lengths)
    options = replace(PLAIN, piece_chars=(shortest, longest), gap=gap, pairs_per_document=count)
    pairs, _ = mine(text, options)
    normal = " ".join(text.split())
    assert len(pairs) <= count
    for pair in pairs:
        for piece in pair:
            assert piece in normal
            assert shortest <= len(piece) <= longest
            assert piece == piece.strip()
        x, y = pair
        assert normal.find(y, normal.find(x) + len(x)) >= 0  # y comes after x.


@settings(max_examples=200)
@given(text=TEXTS, gap=st.integers(0, 3))
def test_no_piece_is_used_twice_and_the_gap_is_exact(text, gap):
    normal, spans = cut_pieces(text, (20, 60))
    pieces = [normal[start:end] for start, end in spans]
    assert "".join(pieces).replace(" ", "") == normal.replace(" ", "")  # Nothing is lost.
    ends = [0, *(end for _, end in spans)]
    assert all(start >= end for (start, _), end in zip(spans, ends, strict=False))
    unique = {piece: place for place, piece in enumerate(pieces)}
    if len(unique) == len(pieces):
        options = replace(PLAIN, piece_chars=(1, 60), gap=gap, pairs_per_document=1000)
        pairs, _ = mine(text, options)
        normal, spans = cut_pieces(text, (1, 60))
        place = {normal[start:end]: index for index, (start, end) in enumerate(spans)}
        if len(place) == len(spans):
            used = [(place[x], place[y]) for x, y in pairs]
            assert all(y - x == gap + 1 for x, y in used)
            assert len({piece for pair in used for piece in pair}) == 2 * len(used)


SENTENCES = [f"Sentence {n} tells of {what}." for n, what in enumerate(["ships", "wool"] * 40)]


def test_sentences_and_paragraphs_stay_whole():
    lines = "A first paragraph\nwrapped by hand. It has two sentences.\n\nA second one.\n"
    normal, pieces = cut_pieces(lines, (1, 40))
    assert [normal[start:end] for start, end in pieces] == [
        "A first paragraph wrapped by hand.",
        "It has two sentences. A second one.",
    ]
    # Without blank lines, each line is a paragraph, and its end is the end of a sentence.
    normal, pieces = cut_pieces("A title\nA first paragraph without end\nA second", (1, 31))
    assert [normal[start:end] for start, end in pieces] == [
        "A title",
        "A first paragraph without end",
        "A second",
    ]


def test_a_copy_with_another_beginning_is_cut_at_the_same_places():
    text = " ".join(SENTENCES)
    pieces = []
    for beginning in ("", "Something else comes first. And more of it, much more of it. "):
        normal, spans = cut_pieces(beginning + text, (60, 400))
        pieces.append({normal[start:end] for start, end in spans})
    assert len(pieces[0] & pieces[1]) >= 0.8 * len(pieces[0])


def test_pairs_over_the_limit_are_left_out_evenly():
    text = "\n".join(f"Line {n} of the long document has words." for n in range(100))
    options = replace(PLAIN, piece_chars=(10, 45), gap=0, pairs_per_document=5)
    pairs, drops = mine(text, options)
    assert [int(x.split()[1]) for x, _ in pairs] == [0, 20, 40, 60, 80]
    assert drops["pair over --pairs-per-document"] == 45


GOOD = "The farmers sold their wool in the town before the winter came over the hills. "


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("12 345 678 90 11 22 33 44 55 66 77 88 99 000 111 222 333 444 555 66.", "of few letters"),
        ("w " * 40 + ".", "of odd word lengths"),
        ("Donaudampfschifffahrtsgesellschaftskapitaen " * 2 + ".", "of odd word lengths"),
        ("spam eggs " * 9 + ".", "that repeats itself"),
    ],
)
def test_the_quality_filter_names_its_reason(bad, reason):
    text = f"{GOOD}\n{bad}"
    options = TextOptions(piece_chars=(60, 88), languages=("en",))
    pairs, drops = mine(text, options)
    assert not pairs
    assert drops[f"pair with a piece {reason}"] == 1
    unfiltered, _ = mine(text, TextOptions(piece_chars=(1, 100), languages=(), quality=False))
    assert unfiltered == [(GOOD.strip(), " ".join(bad.split()))]


def test_a_pair_with_a_short_piece_is_dropped():
    pairs, drops = mine(
        f"{GOOD}\nShort.\n{GOOD}", TextOptions(piece_chars=(60, 80), gap=0, languages=())
    )
    assert not pairs
    assert drops["pair with a piece too short"] == 1


def test_documents_in_other_languages_are_dropped():
    german = "Die Bauern verkauften ihre Wolle in der Stadt, bevor der Winter kam. " * 6
    english = GOOD * 6
    options = {"piece_chars": (60, 100), "quality": False}
    for text, language in ((german, "de"), (english, "en")):
        for wanted in ((), ("de",), ("en",), ("de", "en")):
            pairs, drops = mine(text, TextOptions(languages=wanted, **options))
            kept = not wanted or language in wanted
            assert bool(pairs) == kept
            assert drops["document in another language"] == (not kept)


PASSAGES = {
    "zh": "港口在晨曦中慢慢醒来、渡船横穿海湾。渔民们在码头上修补渔网、孩子们在一旁观看。"
    "面包师在日出之前把热面包送到街角的商店。没有人着急、因为市场要等教堂的钟声响起之后才开门。"
    "关于那场暴风雨的旧故事又在水边的小酒馆里被人讲起。灯塔看守人把天气写进了厚厚的书里。",
    "ja": "港は静かに目を覚まし、渡し船が湾を横切った。漁師たちは岸壁で網を繕い、"
    "子どもたちがそれを見ていた。パン屋は日の出前に温かいパンを角の店まで運んだ。誰も急がなかった。"
    "市場は教会の鐘が鳴ってから開くからだ。灯台守は天気を厚い本に書きつけた。",
    "th": "ท่าเรือค่อยๆ ตื่นขึ้นในยามเช้า และเรือข้ามฟากแล่นผ่านอ่าวไปอย่างช้าๆ ชาวประมงนั่งซ่อมแหอยู่ริมท่า "
    "ส่วนเด็กๆ ยืนมองดูอยู่ใกล้ๆ คนทำขนมปังนำขนมปังร้อนๆ ไปส่งที่ร้านหัวมุมก่อนพระอาทิตย์ขึ้น ไม่มีใครรีบร้อน",
    "km": "កំពង់ផែភ្ញាក់ពីដំណេកយឺតៗ ហើយសាឡាងបានឆ្លងកាត់ឈូងសមុទ្រ។ អ្នកនេសាទជួសជុលសំណាញ់នៅលើផែ "
    "ហើយកុមារមើលពួកគេ។ អ្នកដុតនំយកនំប៉័ងក្តៅទៅហាងមុនព្រះអាទិត្យរះ។ គ្មាននរណាប្រញាប់ទេ",
    "hi": "बंदरगाह धीरे-धीरे जाग उठा और नाव खाड़ी के पार चली गई। मछुआरे घाट पर अपने जाल ठीक कर रहे थे और "
    "बच्चे उन्हें देख रहे थे। नानबाई सूरज निकलने से पहले गरम रोटी कोने की दुकान तक ले गया। किसी को जल्दी नहीं थी।",
    "ta": "துறைமுகம் மெதுவாக விழித்தெழுந்தது, படகு விரிகுடாவைக் கடந்து சென்றது. மீனவர்கள் கரையில் தங்கள் "
    "வலைகளைச் சரிசெய்தனர், குழந்தைகள் அதைப் பார்த்துக்கொண்டிருந்தனர். ரொட்டிக் கடைக்காரர் சூரியன் "
    "உதிக்கும் முன் சூடான ரொட்டியைக் கடைக்குக் கொண்டு சென்றார். யாரும் அவசரப்படவில்லை.",
    "bn": "বন্দরটি ধীরে ধীরে জেগে উঠল এবং ফেরি নৌকাটি উপসাগর পার হয়ে গেল। জেলেরা ঘাটে বসে তাদের জাল মেরামত "
    "করছিল আর শিশুরা তা দেখছিল। রুটিওয়ালা সূর্য ওঠার আগেই গরম রুটি কোণের দোকানে পৌঁছে দিল।",
    "ar": "استيقظ الميناء ببطء وعبرت العبارة الخليج في هدوء. كان الصيادون يصلحون شباكهم على الرصيف "
    "والأطفال يراقبونهم. حمل الخباز الخبز الساخن إلى متجر الزاوية قبل شروق الشمس.",
    "ko": "항구는 천천히 잠에서 깨어났고 나룻배가 만을 가로질러 갔다. 어부들은 부두에서 그물을 "
    "손질했고 아이들은 그것을 지켜보았다. 빵집 주인은 해가 뜨기 전에 빵을 모퉁이 "
    "가게로 날랐다. 아무도 서두르지 않았다. 시장은 종이 울린 뒤에야 문을 열기 때문이다.",
    "ru": "Гавань медленно просыпалась, и паром пересекал залив. Рыбаки чинили сети на причале и "
    "смотрели на них. Пекарь отнёс тёплый хлеб в угловую лавку ещё до восхода солнца.",
}


@pytest.mark.parametrize("language", PASSAGES)
def test_plain_text_in_a_language_that_was_asked_for_passes(language):
    options = TextOptions(piece_chars=(30, 100), languages=(language,))
    pairs, drops = mine(PASSAGES[language], options)
    assert pairs
    assert not [reason for reason in drops if "of " in reason or "repeats" in reason]


@pytest.mark.parametrize("repeated", ["港口。", "ท่าเรือ", "मछुआरे "])
def test_a_repeated_word_of_any_script_is_found(repeated):
    _, drops = mine(repeated * 60, TextOptions(piece_chars=(30, 100), languages=()))
    assert drops["pair with a piece that repeats itself"]


def test_a_sentence_ends_at_a_danda_and_a_cut_keeps_marks_with_their_letters():
    text, pieces = cut_pieces("नाव चली गई। बच्चे देख रहे थे। वह सो गया।", (1, 16))
    assert [text[start:end] for start, end in pieces] == [
        "नाव चली गई।",
        "बच्चे देख रहे",
        "थे। वह सो गया।",
    ]
    text, pieces = cut_pieces("ที่" * 20, (1, 10))
    assert {text[start:end] for start, end in pieces} == {"ที่" * 3, "ที่" * 2}


def test_a_document_without_neighbours_is_counted():
    for text in ("", " \n", "One sentence only."):
        assert mine(text, PLAIN)[1] == {"document with fewer than two pieces": 1}


def test_options_that_are_not_valid_are_refused():
    with pytest.raises(UserError, match=r"--piece-chars 9 3: expected 0 < MIN <= MAX"):
        check_text_options(TextOptions(piece_chars=(9, 3)))
    with pytest.raises(UserError, match=r"--gap -1: must be 0 or more"):
        check_text_options(TextOptions(gap=-1))
    with pytest.raises(UserError, match=r"--pairs-per-document 0: must be 1 or more"):
        check_text_options(TextOptions(pairs_per_document=0))
    with pytest.raises(
        UserError, match=r"--languages: unknown language 'english'; known: all, .*en"
    ):
        check_text_options(TextOptions(languages=("de", "english")))
