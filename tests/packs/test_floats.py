from __future__ import annotations

import base64
import subprocess
import sys
import textwrap

import pytest
from packs_kit import read_back, weights, write

from holdfast.errors import CodecUnavailable, Corrupt
from holdfast.packs import codec as codecs
from holdfast.packs import floats
from holdfast.packs.codec import Codec, decode
from holdfast.packs.index import read_footer
from holdfast.packs.segment import Segment
from holdfast.packs.verify import verify_pack

pytestmark = pytest.mark.skipif(not floats.available(), reason="no openzl on this platform")

GOLDEN = {
    floats.Graph.BYTES: (
        "vjG4A)upl500E%}0s;UX00000kpm8JfV0MO#G<v-"
        "!_$<8*0a@wu+r9+bg{;y*3q)2rMASAwUE`Mad2><)RnN6!?dQQw$jn2#I|vi*4DCs)V0%wmej-"
        "3w57sy!nT8OaDcPMa>Syw)Wg%1hSsyygs{@qmUOYkq}I{0rlq#TleLi5q;YU?q12VImBX~ArMA-1ro^^!l-"
        "Aa=fYi0qhL+UB)3l|+bi%fSaBzUL#&X1>wbaAYl!n%`)r7Fp)|Pa!#-"
        "!HKvZkfB#FMp<)ueH7aG}(du$9BKrlq#h(Wb<<ag^59vVhdJ(}tGR!_%~-"
        "!gRv6gK%(wv&M47qP5h+)0BqRv(<#K($<!AvBsp<(Xytcw#1XQkkzDdaB!j2m9Uk=w5FxD($S{GwsDl!*0O-"
        "qwbO={)Wg%XrNVT=wu5kRfV0MO#G<v-"
        "!_$<8*0a@wu+r9+bg{;y*3q)2rMASAwUE`Mad2><)RnN6!?dQQw$jn2#I|vi*4DCs)V0%wmej-"
        "3w57sy!nT8OaDcPMa>Syw)Wg%1hSswI009F82?`82IXgT-LPP)"
    ),
    floats.Graph.LANES_2: (
        "R{;P3)upl500E%}1_S^dCldt*0RjjC022WKmjMR^kpTe%0gwR*i;k`p)1fV}v$?UNJOHz(a-"
        "+QxvKiBnYpy5*ghfZ!is{f6*xB4zQ67L<RJqY!3E7P4$Te4#0m7oAYsGYE3+!xetSAq_EUMgSuY_#IbmW>V$^c=}(Y0bav;}rHH&"
        "&DfU=~$wv{ynlV>)up6=i_1=;&H89ohmrn;R?212Bs!H`*&9n=u`^=87^vSafu)m;pFBJ3K)`L`DKE10w(<03rb3N1R^Cg|U+8Fs"
        "9^dCSKSf-fEeUfXn1NU<W_q^hz#_l>}NQB;Ydn4%oquIK7e!V<pjHOv%?wys$&O)iNOgm&td)9+Iz_cwvWlt7Sq0E|c$o9sG#XE4"
        "eUM5*@~re9goQJH*?1B^Sm@qQjVyubFsZhj^=HLIN(6?|>crh|?>%Fjf*B#tZ-"
    ),
    floats.Graph.LANES_4: (
        "W&r>I)upl500E%}2?zikCwH7o6gB|?0Rcb*02o#=089r2MN9_-MF9f<$N>WY$Z1*GG-"
        "|FiV0Lt2+A7<Cm>tIAJW9hP&Z8X09*DH8Y#KFJ8ZbM$Fm07>K+FzfaUP{%66aA4V-G}HRyK{AD-"
        "D<(U6{7YHXvq)0XR83JV8Q4MglAYT1F^}P|FyER}5?}-"
        "m}#_*~ypvm>b0CK{(VhLQ#ZT#vr_6U~}=Ft>(#2zU;@`AVv?up_UPfBGfVl;S~d$i}!3bPatN8u{e*?Fp2Xhhp`7DEi0Qw&6Nhsj"
        "xJ1FWg8H)!&sb0X_&-"
        "$l*8Bqk(QNBqvlEjW=9vMt+EY>*<mcsqclw7Jj!A0fk?~B0XR83JV8Q4MglAYt9i1MFZ(e!h|z;^sAYtr2(^qsc*Vfx;yqi<lbw9"
        "okGVmN9)v?JBNRobWembA1~wP(*=nBb<ja1{4Px{l9BLV%1ON"
    ),
    floats.Graph.LANES_8: (
        "o&f*=)upl500E%}4-"
        "fzV9Vd63+;MWp$wUFR4FLfG0RaI40RRvO001(;7a9vHg#!R42LvM~2LvM~2LvJ}2LvJk0{~<J0{~<J0{~<J0{~>D?6L-"
        "D&}}%=GzHN#J*G9`5iV<s1)ONprcH@~Qg&H`Gw3#)88|sRJV8Q4MFA87n>KAq21<R|!42Mqn{x`{oR4WI9&y<h3!G@vrcKE}sV{q"
        "+X_|s)njX`d@CcW+#R5*WY15{}Kq<Sd!5MTL&NNLyG)<3b9XL5VJV8Q4MglAY%RKktk^w>rDWm{6nelT+9p6ChZY11Y!nRrFxeu2"
        "N5K<^<O?ZUM+F}7G+O%m?VxW{=*5C}f4QHCBAeyGfv?e^lWo@y56F50LJV8Q4MglAY8wq!pux*xk?!zSmgcMRp0dO+o=Z-"
        "qQf!f_jxVwaHvrK>!ZQ8UcF;L1bYj6hLhBHl55KYr#S`!}OvbI>ji8gK8lo%)#I5|5!K|(}E0xSdWsN)-`-"
        "Hn91OV~EcJon*}0YVBXqyRXX@pDHV-$3ndBme"
    ),
    floats.Graph.EXPONENTS: (
        "O9B7@)upl500E%}1p@$`5hexz000090G9y=kOKh$2#b!c71N<Du(P?bqC5bzsB)vd60#Z7k!!9f1B69K*NW-"
        "T7TDR`SWzB;SyZ{vUJ2QZ>Bu!#lmWt`qie-"
        "<XbbFYZmcK|z$~iVXs?89#&qPGE6M<2(b2VHI<y6LHaAw32VfReZnRfIHe)(+%@t*Uu;}PoF&)|hJDVFT$^$TqDmU6IA)7HBx#o&"
        "8Kv;Bit(XCDa&~xvgopqD2p9$u1{4wq2oe|=2ow?k1{fF;0vHk)0tOfq7!n8+02C4e0006K6aW+m5*QR11_Bro7y=R)7zO|m6bKj"
        "?5(o$q6b2Fo7zh9W00<Zc5(X3!2nZ4w7zh*+00tNs5&{?!7y<?u6c`c+6aW+w0ssI45)=Rw2oe|+7zP3u5*Pv!7#Ics5)=p+7!n8"
        "w5)=j!1{eqc000OW1`-"
        "Ao5(o$q7#Ii?5&#Am7!m>)5*Pvo7!(*12owMm5&{4K0umGe6bKR+6c`2q7!nu)5*Qc;01^}k7#I==2oe+q5(XFu000087zPps6cP"
        "vs5*Qc=6cPXi7#I=)7!nu)1{f3=5(pFk6cPde00I&e02Bxk7!()=0vHk)0umS)1^^Ni2pAX=2nZ4s1`-"
        "As2mk;82p9$u1{4wq2oe|=2ow?k1{fF;0vHk)0tOfq7!n8+02C4e0006K6aW+m5*QR11_Bro7y=R)7zO|m6bKj?5(o$q6b2Fo7zh"
        "9W00<Zc5(X3!2nZ4w7zh9"
    ),
    floats.Graph.EXPONENTS_AND_REST: (
        "Tmb+8)upl500E%}1_S_IXM_n1000000|5Y+0SA`>2LS;Hi;k`p)1fV}v$?UNJOHz(a-"
        "+QxvKiBnYpy5*ghfZ!is{f6*xB4zQ67L<RJqY!3E7P4$Te4#0m7oAYsGYE3+!xetSAq_EUMgSuY_#IbmW>V$^c=}(Y0bav;}rHH&"
        "&DfU=~$wv{ynlV>)up6=i_1=;&H89ohmrn;R?212Bs!H`*&9n=u`^=87^vSafu)m;rEdc6fq>h`=nW+-"
        "R?aY{qotnk&ixVbRgGVmh=1b~ZOwlm}oIRc^FbLN;SMa?KTGfUxN3S}`5k0y~=<E6M{fiz+wTD<PXP9l7R;GC){#bgh^UZGoN5jT"
        "Pkqm_?Nv?Uj(tn2ua?MHwJ0I=WU&hql1Z=EjQh0L-GwjrK~&W=uz}xuOgZ79CwHrbAm`XLDmkc>rcn<wkn}00IUG5)>E!"
    ),
}
"""Graph -> stored bytes of `PLAIN` as openzl 0.3.0 wrote them: they must be read for ever."""


@pytest.mark.parametrize("graph", floats.Graph)
@pytest.mark.parametrize("size", [8, 4096, floats.PIECE_BYTES, floats.PIECE_BYTES + 8, 3 * floats.PIECE_BYTES])
def test_every_graph_gives_back_what_it_was_given(graph, size, rng):
    for raw in (weights(rng, size // 4), bytes(size), rng.randbytes(size)):
        assert decode(Codec.OPENZL, floats.compress(graph, raw), size) == raw


def test_equal_segments_have_equal_frames(rng):
    """Packs of a repack are compared with those of a save."""
    raw = weights(rng, 100_000)
    assert floats.compress(floats.Graph.LANES_4, raw) == floats.compress(floats.Graph.LANES_4, bytearray(raw))


@pytest.mark.parametrize("graph", floats.Graph)
def test_random_damage_is_an_error_or_other_bytes_and_never_a_crash(graph, rng):
    """Without the check of the stored bytes, which comes first: 200,000 frames more were tried by hand."""
    raw = weights(rng, 2048, "bfloat16" if graph.width == 2 else "float32")
    whole = floats.compress(graph, raw)
    for _ in range(1500):
        frames = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            place = rng.randrange(120) if rng.random() < 0.7 else rng.randrange(len(frames))
            frames[place] = rng.choice([frames[place] ^ 1 << rng.randrange(8), 0, 127, 255])
        if rng.random() < 0.2:
            del frames[rng.randrange(len(frames)) :]
        try:
            content = decode(Codec.OPENZL, frames, len(raw))
        except (Corrupt, MemoryError):
            continue
        assert len(content) == len(raw)


@pytest.mark.parametrize("size", [8192 - 4, 8192 + 4, 4096, 1])
def test_another_length_than_declared_is_corrupt(size, rng):
    frames = floats.compress(floats.Graph.LANES_4, weights(rng, 2048))
    with pytest.raises(Corrupt, match="declared"):
        decode(Codec.OPENZL, frames, size)


def test_a_frame_that_claims_more_than_declared_is_refused_before_memory_is_taken():
    """hazards 49: two thousand bytes would become two million."""
    bomb = floats.compress(floats.Graph.BYTES, bytes(floats.PIECE_BYTES)) * 8
    assert len(bomb) < 3000
    with pytest.raises(Corrupt, match="claims 262144 bytes where at most 10 "):
        decode(Codec.OPENZL, bomb, 10)
    with pytest.raises(Corrupt, match="at most 0 "):
        decode(Codec.OPENZL, bomb, 7 * floats.PIECE_BYTES)


@pytest.mark.parametrize(
    "damage",
    [lambda s: s[:-1], lambda s: s[:3], lambda s: s + b"\1\0\0\0", lambda s: s + bytes(4), lambda s: b"\0" * len(s)],
)
def test_frames_that_do_not_end_where_they_say_are_corrupt(damage, rng):
    with pytest.raises(Corrupt):
        decode(Codec.OPENZL, damage(floats.compress(floats.Graph.LANES_4, weights(rng, 2048))), 8192)


@pytest.fixture
def packed(heap, rng):
    """A pack of one segment of weights, as openzl stores it."""
    written = write(heap, [Segment(memoryview(weights(rng, 50_000)), "float32")], codec=Codec.OPENZL)
    (entry,) = read_footer(heap, written.packs[0].name)
    assert entry.codec is Codec.OPENZL
    return written, entry


def test_no_decoder_sees_stored_bytes_that_do_not_match_their_check(heap, packed, rng, monkeypatch):
    """On every path: OpenZL is not made for damaged input."""
    written, entry = packed
    seen = []
    real = floats.decompress
    monkeypatch.setattr(codecs.floats, "decompress", lambda *args: seen.append(args) or real(*args))
    heap.objects[written.packs[0].name][entry.offset + rng.randrange(entry.stored)] ^= 1 << rng.randrange(8)
    with pytest.raises(Corrupt, match="check"):
        read_back(heap, written, [entry.length])
    (problem,) = verify_pack(heap, written.packs[0].name)
    assert problem.digest == entry.digest
    assert seen == []


def test_whole_segments_that_cannot_be_decoded_here_are_not_called_damaged(heap, packed, monkeypatch):
    """Or a resume would go back to an older checkpoint, and a save would distrust the pack."""
    written, entry = packed

    def missing(_):
        raise ImportError("No module named 'openzl'")

    monkeypatch.setattr(floats, "_contexts", floats._Contexts())
    monkeypatch.setattr(floats.importlib, "import_module", missing)
    assert not floats.available()
    for attempt in (
        lambda: read_back(heap, written, [entry.length]),
        lambda: verify_pack(heap, written.packs[0].name),
    ):
        with pytest.raises(CodecUnavailable, match=r"pip install 'holdfast\[openzl\]'"):
            attempt()


def test_a_pack_without_such_segments_needs_no_openzl():
    """Nothing imports it before it is used."""
    code = """
        import sys
        sys.modules["openzl"] = sys.modules["openzl.ext"] = None
        from holdfast.packs.codec import Codec, decode, encode
        assert encode(Codec.ZSTD, bytes(9999), "float32")[0] is Codec.ZSTD
        assert decode(Codec.ZSTD, encode(Codec.ZSTD, bytes(9999))[1], 9999) == bytes(9999)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


EXITS = {
    "at its end": "",
    "by an error": "raise SystemExit(0)",
    "with a thread at work": "threading.Thread(target=work, args=[1000], daemon=True).start()",
    "after an interrupt inside": """
        try:
            with floats._contexts.compressor(floats.Graph.LANES_4) as compressed:
                raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            cycle = [error]
            cycle.append(cycle)
            del cycle
    """,
    "after garbage was collected": "import gc; work(3); gc.collect(); work(3)",
}


@pytest.mark.parametrize("way", EXITS)
def test_a_process_that_used_it_ends_quietly(way):
    """openzl 0.3 aborts the process if the garbage collector finds its objects in a cycle."""
    code = """
        import threading
        from holdfast.packs import floats

        def work(count):
            for _ in range(count):
                frames = floats.compress(floats.Graph.LANES_4, bytes(4096))
                floats.decompress(frames, memoryview(bytearray(4096)))

        threads = [threading.Thread(target=work, args=[20]) for _ in range(4)]
        for thread in threads:
            thread.start()
        work(20)
        """
    script = textwrap.dedent(code) + textwrap.dedent(EXITS[way])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    # What a daemon thread was using when the process ended can only be reported as leaked.
    assert done.stderr == "" or (way == "with a thread at work" and done.stderr.startswith("nanobind: leaked"))


def plain():
    """Bytes that every graph makes shorter, and that need no generator."""
    return bytes((n * n // 7 % 11) ** 2 % 13 + (56 if n % 2 else 0) for n in range(800))


@pytest.mark.parametrize("graph", GOLDEN)
def test_frames_of_earlier_versions_are_read(graph):
    assert decode(Codec.OPENZL, base64.b85decode(GOLDEN[graph]), 800) == plain()


def test_there_is_a_golden_frame_of_every_graph():
    assert set(GOLDEN) == set(floats.Graph)
