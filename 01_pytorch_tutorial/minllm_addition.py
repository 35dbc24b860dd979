"""ミニ GPT をゼロから訓練し、2 桁までの足し算を覚えさせる。

前のレッスン（minllm.py）との違い: minllm.py のモデルが、ここで初めて学ぶ。「次の文字を当てる」訓練だけで、
訓練に使わなかった 1,000 問にも答えられるようになる。

実行: python minllm_addition.py （質問を加えるなら -q "47+85"）
結果（2 コアの CPU で約 20 秒）:
    held-out exact match: 100.0% (0 wrong of 1000)
試してみよう:
    - LEARNING_RATE を 3e-4 にすると、正解率が上がり始めるのは何ステップ目になるか。
    - n_layer を 1 にしても、繰り上がりを覚えられるか。
    - NUM_HELD_OUT を 9000 に増やし、1,000 問だけで訓練すると何が起きるか。
"""

import argparse
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

OUTPUT = Path(__file__).resolve().parent.parent / "images" / "minllm_addition.png"

VOCABULARY = "0123456789+="  # 1 文字が 1 トークン。番号はこの並びでの位置
PROMPT_LENGTH = 6  # "47+85=" の文字数
ANSWER_LENGTH = 3  # 和は 3 桁。足りない桁は 0 で埋める
NUM_HELD_OUT = 1000  # 訓練に使わない問題の数。丸暗記でなく計算できることを、これで確かめる
STEPS = 1000
BATCH_SIZE = 128
LEARNING_RATE = 3e-3  # スケジュールの頂点での学習率
MAX_GRAD_NORM = 1.0  # 勾配の大きさの上限。たまに来る大きすぎる勾配が、覚えかけたものを壊すのを防ぐ
LOG_INTERVAL = 100  # 進み具合を表示する間隔（ステップ）
EXAMPLES = [(3, 4), (47, 85), (60, 28), (99, 99)]  # 上達の様子を見るための問題（訓練に使うものも混ざる）


@dataclass
class GPTConfig:
    """モデルの大きさ。最後の文字は当てるだけで読まないので、block_size は 1 文字少なくてよい。"""

    vocab_size: int = len(VOCABULARY)
    block_size: int = PROMPT_LENGTH + ANSWER_LENGTH - 1
    n_layer: int = 2  # ブロックの数
    n_head: int = 4  # 注意のヘッドの数
    n_embd: int = 64  # 1 トークンを表すベクトルの長さ


def select_device(name):
    """計算に使う torch.device を返す。auto なら MPS、CUDA、CPU の順に、使えるものを選ぶ。

    Raises:
        SystemExit: 指定されたデバイスがこのマシンで使えないとき。
    """
    available = {
        "mps": torch.backends.mps.is_available(),
        "cuda": torch.cuda.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device in available if available[device])
    if not available[name]:
        sys.exit(f"エラー: デバイス {name} はこのマシンでは使えない。-d auto か -d cpu を指定する")
    return torch.device(name)


class CausalSelfAttention(nn.Module):
    """自分と自分より前のトークンだけを見る、マルチヘッド自己注意。

    出典: Vaswani et al., "Attention Is All You Need", https://arxiv.org/abs/1706.03762
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query（何を探すか）、key（何を持つか）、value（渡す中身）
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        B, T, C = x.shape
        head_size = C // self.n_head
        query, key, value = self.c_attn(x).split(C, dim=2)  # (B, T, 3C) -> (B, T, C) が 3 つ
        # ヘッドごとに別々の注意を計算できる並びにする: (B, T, C) -> (B, n_head, T, head_size)
        query = query.view(B, T, self.n_head, head_size).transpose(1, 2)
        key = key.view(B, T, self.n_head, head_size).transpose(1, 2)
        value = value.view(B, T, self.n_head, head_size).transpose(1, 2)
        # 内積の分散は head_size に比例する。softmax が 1 点に偏らないように √head_size で割る
        scores = query @ key.transpose(2, 3) / math.sqrt(head_size)  # (B, n_head, T, T)
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(diagonal=1)
        scores = scores.masked_fill(future, -math.inf)  # softmax で 0 になり、未来のトークンは混ざらない
        attention = scores.softmax(dim=3)  # 各行の和は 1
        self.attention = attention.detach()  # どこを見たかを後で調べるための控え
        x = attention @ value  # (B, n_head, T, T) @ (B, n_head, T, head_size) -> (B, n_head, T, head_size)
        x = x.transpose(1, 2).reshape(B, T, C)  # ヘッドを横につなぐ
        return self.c_proj(x)


class MLP(nn.Module):
    """トークンごとに独立に働く 2 層の全結合ネットワーク。中間層は 4 倍に広い。"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        x = F.gelu(self.c_fc(x), approximate="tanh")  # (B, T, n_embd) -> (B, T, 4 * n_embd)
        return self.c_proj(x)  # (B, T, 4 * n_embd) -> (B, T, n_embd)


class Block(nn.Module):
    """Transformer のブロック。注意で他のトークンから情報を集め、MLP で加工する。"""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        # x をそのまま足す道（残差接続）があるので、層を重ねても勾配が入力側まで届く
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 の形をしたモデル。ただし dropout はなく、lm_head の重みを wte と共有しない。

    出典: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019)
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # トークンの埋め込み
        self.wpe = nn.Embedding(config.block_size, config.n_embd)  # 位置の埋め込み
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        # 小さな値から始めるとロジットが 0 に近く、どのトークンの確率もほぼ 1/vocab_size になる
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx):
        """トークン番号 (B, T)（int64、T は block_size 以下）-> ロジット (B, T, vocab_size)

        Raises:
            ValueError: T が block_size より長いとき。
        """
        T = idx.shape[1]
        if T > self.config.block_size:
            raise ValueError(f"sequence length {T} exceeds block_size {self.config.block_size}")
        x = self.wte(idx) + self.wpe(torch.arange(T, device=idx.device))  # (B, T, n_embd) + (T, n_embd)
        for block in self.h:
            x = block(x)  # (B, T, n_embd)
        return self.lm_head(self.ln_f(x))  # (B, T, n_embd) -> (B, T, vocab_size)


def encode(a, b):
    """問題と答えを 9 個のトークン番号のリストにする。(47, 85) は "47+85=231" である。

    和を 1 の位から逆向きに書くのは、筆算と同じで、各桁が、すでに書かれた文字（2 つの数と、
    繰り上がりの分かる下の桁）だけから決まるようにするためである。
    """
    text = f"{a:02d}+{b:02d}=" + f"{a + b:03d}"[::-1]
    return [VOCABULARY.index(character) for character in text]


def decode(tokens):
    """トークン番号のテンソル (T,) を文字列に戻す。"""
    return "".join(VOCABULARY[token] for token in tokens.tolist())


def answer_of(tokens):
    """エンコードされた問題と答え (9,) から、答えを整数として読む。数字でない文字が混ざっていれば None を返す。"""
    digits = decode(tokens[PROMPT_LENGTH:])[::-1]
    return int(digits) if digits.isdecimal() else None


def make_data():
    """全 10,000 問 (10000, 9) をシャッフルし、訓練用 (9000, 9) と、訓練に使わない検証用 (1000, 9) に分ける。"""
    data = torch.tensor([encode(a, b) for a in range(100) for b in range(100)])
    data = data[torch.randperm(len(data))]
    return data[NUM_HELD_OUT:], data[:NUM_HELD_OUT]


@torch.no_grad()
def generate(model, idx, max_new_tokens):
    """idx (B, T) の続きを 1 トークンずつ書き足し、(B, T + max_new_tokens) と、書いた各トークンの確率を返す。

    自分が書いた文字を次の入力にすることを、自己回帰という。ここではいつも最も確率の高い文字を選ぶ
    （温度 0）ので、同じ問題には必ず同じ答えを書く。
    """
    model.eval()
    probabilities = []
    for _ in range(max_new_tokens):
        logits = model(idx)[:, -1]  # 最後の位置だけが、まだ書かれていない文字を予測する: (B, vocab_size)
        probability, next_token = logits.softmax(dim=1).max(dim=1, keepdim=True)  # (B, 1)
        idx = torch.cat([idx, next_token], dim=1)
        probabilities.append(probability)
    return idx, torch.cat(probabilities, dim=1)


def solve(model, data):
    """data (N, 9) の問題の部分だけを見せて答えを書かせ、書いたもの (N, 9) と、全桁が正しいか (N,) を返す。"""
    written, _ = generate(model, data[:, :PROMPT_LENGTH], ANSWER_LENGTH)
    return written, (written == data).all(dim=1)


def train(model, train_data, held_out, examples, steps):
    """steps 回更新し、記録 {"step", "loss", "exact_match"} を返す。途中で例題を解かせて表示する。"""
    device = train_data.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    # 学習率を最初の 3 割で頂点まで上げ、残りでほぼ 0 まで下げる。出典: https://arxiv.org/abs/1708.07120
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    history = {"step": [], "loss": [], "exact_match": []}
    for step in range(1, steps + 1):
        model.train()
        batch = train_data[torch.randint(len(train_data), (BATCH_SIZE,)).to(device)]  # (B, 9)
        # 因果マスクのおかげで、どの位置も自分より前しか見ていない。だから 1 回の順伝播で全部の位置を訓練できる
        idx, targets = batch[:, :-1], batch[:, 1:].clone()  # どちらも (B, 8)。targets は 1 文字先である
        targets[:, : PROMPT_LENGTH - 1] = -100  # 問題の部分は損失に入れない。2 つの数は乱数で、当てようがない
        logits = model(idx)  # (B, 8) -> (B, 8, vocab_size)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

        if step % LOG_INTERVAL == 0 or step == steps:
            exact_match = 100 * solve(model, held_out)[1].float().mean().item()
            history["step"].append(step)
            history["loss"].append(loss.item())
            history["exact_match"].append(exact_match)
            written, correct = solve(model, examples)
            marks = [f"{decode(row[:PROMPT_LENGTH])}{decode(row[PROMPT_LENGTH:])[::-1]}{'o' if ok else 'x'}"
                     for row, ok in zip(written, correct)]
            print(f"step {step:4d}  loss {loss.item():.4f}  held-out {exact_match:5.1f}%  " + "  ".join(marks),
                  flush=True)
    return history


def explain_generation(model, problem):
    """1 問 (9,) を 1 文字ずつ解かせ、各文字の確率を表示する。問題に答えを書き足したもの (9,) を返す。"""
    tokens, probabilities = generate(model, problem[None, :PROMPT_LENGTH], ANSWER_LENGTH)
    text = decode(tokens[0])
    print(f"\nwriting the answer to {text[:PROMPT_LENGTH]} from the lowest digit:")
    for i, probability in enumerate(probabilities[0].tolist(), start=PROMPT_LENGTH):
        print(f"  {text[:i]:8s} -> {text[i]}  (probability {probability:.4f})")
    return tokens[0]


@torch.no_grad()
def attention_maps(model, tokens):
    """問題と答え (9,) を読ませ、答えの各桁を書くときの注意 (n_layer, n_head, ANSWER_LENGTH, T) を返す。

    最後の次元は見る相手の文字である。T は block_size で、和は 1 になる。
    """
    model.eval()
    model(tokens[None, :-1])
    attention = torch.cat([block.attn.attention for block in model.h])  # (n_layer, n_head, T, T)
    return attention[:, :, -ANSWER_LENGTH:].cpu()  # 次の文字として答えを書くのは、最後の 3 つの位置である


def draw(history, tokens, attention):
    """左に損失と正解率の移り変わり、右に 1 問を解くときの各ヘッドの注意を描いた Figure を返す。"""
    n_layer, n_head = attention.shape[:2]
    fig = plt.figure(figsize=(14, 5), dpi=100, layout="constrained")
    curves, maps = fig.subfigures(1, 2, width_ratios=[1, 2.6])

    loss_axes, exact_axes = curves.subplots(2, 1, sharex=True)
    loss_axes.plot(history["step"], history["loss"], "o-", markersize=3, color="#0072B2")
    loss_axes.set(ylabel="cross-entropy loss", yscale="log", title="Training")
    exact_axes.plot(history["step"], history["exact_match"], "o-", markersize=3, color="#D55E00")
    exact_axes.set(xlabel="step", ylabel="held-out exact match (%)", ylim=(-3, 103))
    for axes in (loss_axes, exact_axes):
        axes.grid(alpha=0.3)

    text = decode(tokens)
    grid = maps.subplots(n_layer, n_head, sharex=True, sharey=True, squeeze=False)
    for layer in range(n_layer):
        for head in range(n_head):
            axes = grid[layer, head]
            image = axes.imshow(attention[layer, head].numpy(), cmap="cividis", vmin=0, vmax=1, aspect="auto")
            axes.set_title(f"layer {layer}, head {head}", fontsize=10)
            axes.set_xticks(range(len(text) - 1), text[:-1])
            axes.set_yticks(range(ANSWER_LENGTH), [
                f"{name}: {digit}" for name, digit in zip(["ones", "tens", "hundreds"], text[PROMPT_LENGTH:])
            ])
    maps.suptitle(f"Attention while writing {text}: each row is the digit being written")
    maps.supxlabel("character looked at")
    maps.colorbar(image, ax=grid, label="attention (each row sums to 1)")
    return fig


def save_figure(fig, path):
    """図を path に保存し、画面のある環境ではウィンドウにも表示する（閉じるまで待つ）。"""
    fig.savefig(path)
    print(f"saved: {path}", flush=True)
    if plt.get_backend().lower() != "agg":  # agg は画面のない環境で選ばれる
        plt.show()


def check_writable(path):
    """path に書き込めることを、時間のかかる計算の前に確かめる。

    Raises:
        SystemExit: 書き込めないとき。
    """
    try:
        existed = path.exists()
        if existed and not path.is_file():
            raise OSError("not a file")
        with open(path, "ab"):  # 追記で開くだけなので、今ある中身は変わらない
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        sys.exit(
            f"エラー: {path} に書き込めない（{error.strerror or error}）。"
            "書き込めるフォルダの中のファイル名を指定する"
        )


def parse_question(text):
    """質問の文字列 "47+85" を (47, 85) にする。

    Raises:
        argparse.ArgumentTypeError: 2 桁までの数 2 つの足し算として読めないとき。
    """
    match = re.fullmatch(r"([0-9]{1,2})\+([0-9]{1,2})", text.replace(" ", ""))
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} は読めない。47+85 のように 2 桁までの数を 2 つ、+ でつなぐ")
    return int(match[1]), int(match[2])


def parse_args(argv):
    """コマンドラインの引数を調べて返す。正しくない引数は 1 行で知らせて終わる（SystemExit）。"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # argparse の英語のエラーを、日本語の 1 行に置き換える
    parser.error = lambda message: sys.exit(f"エラー: 引数が正しくない（{message}）。使い方は --help で見られる")
    parser.add_argument("-s", "--steps", type=int, default=STEPS, help=f"更新の回数（既定: {STEPS}）")
    parser.add_argument("-q", "--question", type=parse_question, action="append", default=[],
                        help='訓練の後に解かせる足し算。訓練に使った問題でもよい。例: "47+85"（何度でも指定できる）')
    parser.add_argument("-d", "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
                        help="計算するデバイス（既定: auto。MPS、CUDA、CPU の順に使えるものを選ぶ）")
    parser.add_argument("--seed", type=int, default=0, help="乱数のシード（既定: 0）")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT,
                        help="図の保存先（既定: images/minllm_addition.png）")
    args = parser.parse_args(argv)
    if not 1 <= args.steps <= 100_000:
        parser.error("--steps は 1 以上 100000 以下の整数にする")
    if not 0 <= args.seed < 2**32:
        parser.error("--seed は 0 以上 2**32 未満の整数にする")
    if args.output.suffix not in (".png", ".jpg", ".pdf", ".svg"):
        parser.error("--output の拡張子は .png、.jpg、.pdf、.svg のどれかにする")
    check_writable(args.output)
    return args


def main(argv=None):
    args = parse_args(argv)
    device = select_device(args.device)
    start = time.perf_counter()
    torch.manual_seed(args.seed)
    print(f"device: {device}")

    train_data, held_out = (tensor.to(device) for tensor in make_data())
    examples = torch.tensor([encode(a, b) for a, b in EXAMPLES]).to(device)
    model = GPT(GPTConfig()).to(device)
    print(f"data: {len(train_data)} sums for training, {len(held_out)} held out")
    print(f"model: {sum(p.numel() for p in model.parameters())} parameters")
    history = train(model, train_data, held_out, examples, args.steps)

    written, correct = solve(model, held_out)
    wrong = [decode(row) for row in written[~correct]]
    print(f"\nheld-out exact match: {history['exact_match'][-1]:.1f}% ({len(wrong)} wrong of {len(held_out)})")
    for text in wrong[:10]:
        a, b, answer = text[:2], text[3:5], text[PROMPT_LENGTH:][::-1]
        print(f"  {a}+{b}: wrote {answer}, right {int(a) + int(b):03d}")

    tokens = explain_generation(model, examples[1])
    attention = attention_maps(model, tokens)
    answers = []
    for a, b in args.question:
        question_tokens, _ = generate(model, torch.tensor([encode(a, b)[:PROMPT_LENGTH]]).to(device), ANSWER_LENGTH)
        answers.append(answer_of(question_tokens[0]))
        print(f"question: {a}+{b} = {answers[-1]}")
    print(f"elapsed: {time.perf_counter() - start:.1f} s", file=sys.stderr)

    fig = draw(history, tokens, attention)
    save_figure(fig, args.output)
    return {"model": model, "history": history, "train_data": train_data, "held_out": held_out,
            "attention": attention, "tokens": tokens, "answers": answers, "figure": fig}


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
        sys.stdout.reconfigure(errors="backslashreplace")  # 端末が表せない文字があっても止まらない
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("中断した")
