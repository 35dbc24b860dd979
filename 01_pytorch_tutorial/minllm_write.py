"""訓練済みの GPT に、好きな書き出しの続きを書かせる。温度と top-k が何をするかを、次の文字の確率で見る。

前のレッスン（minllm_novel.py）との違い: 訓練はせず、保存された重みを読み込んで書く。最後に、小説の丸写しでないかを調べる。

実行: python minllm_write.py（書き出しを変えるなら python minllm_write.py -p "主人は"）
結果（2 コアの CPU で約 2 秒）:
    next   t=0.5     t=1     t=2 t=1,k=5 this run (t=0.8,k=40)
    'こ'   34.2%    5.9%    0.8%   40.1%   16.6%
    longest run found in the novel: 7 characters, 'と思ったが、も'
説明: このフォルダの README.md
試してみよう:
    - -t 0 にすると、どんな言葉を繰り返すか。
    - -t 2 -k 3000（すべての文字が候補）にすると、小説にそのまま出てくる最も長い部分は何文字になるか。
    - -k 1 にすると、this run の列はどうなるか。書く文章は -t 0 と同じか。
"""

# %% 準備
import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

SEED = 0
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "minllm_novel.pth"
if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
    sys.stdout.reconfigure(errors="replace")  # 端末が表せない文字は ? にして、止まらない
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-p", "--prompt", default="吾輩は", help="書き出し（既定: 吾輩は）")
parser.add_argument("-n", "--count", type=int, default=200, help="書く文字の数（既定: 200）")
parser.add_argument("-t", "--temperature", type=float, default=0.8, help="温度。0 なら最も確率の高い文字（既定: 0.8）")
parser.add_argument("-k", "--top-k", type=int, default=40, help="確率の高い方から何文字の中で選ぶか（既定: 40）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
if not args.prompt:
    parser.error("--prompt は 1 文字以上にする")
if args.count < 1 or args.top_k < 1:
    parser.error("--count と --top-k は 1 以上にする")
if args.temperature != 0 and not 0.01 <= args.temperature <= 100:
    parser.error("--temperature は 0 か、0.01 以上 100 以下にする")
device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)


# %% モデル（minllm_novel.py と同じ）
@dataclass
class GPTConfig:
    """モデルの大きさ。"""

    vocab_size: int  # 語彙の大きさ、つまり文字の種類の数。データで決まる
    block_size: int = 64  # 一度に入力できるトークンの個数の上限
    n_layer: int = 2  # Block を何段重ねるか
    n_head: int = 4  # 1 つの注意を、いくつのヘッドに分けて計算するか。n_embd を割り切る数にする
    n_embd: int = 112  # 1 トークンを表すベクトルの長さ


class CausalSelfAttention(nn.Module):
    """因果マスク付きのマルチヘッド自己注意。各トークンが、自分と自分より前のトークンから value を集めて混ぜる。

    query と key の内積が大きい相手ほど、その value を多く混ぜる。出典: https://arxiv.org/abs/1706.03762
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        # query（何を探すか）、key（何を持つか）、value（渡す中身）を、1 つの層でまとめて作る
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)  # 各ヘッドの出力を 1 つのベクトルにまとめる

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        B, T, C = x.shape  # 系列の本数、系列の長さ、n_embd
        head_size = C // self.n_head  # 1 つのヘッドが使うベクトルの長さ
        query, key, value = self.c_attn(x).split(C, dim=2)  # (B, T, 3 * C) -> (B, T, C) が 3 つ

        # ヘッドごとに別々に計算できる並びにする: (B, T, C) -> (B, T, n_head, head_size) -> (B, n_head, T, head_size)
        query = query.view(B, T, self.n_head, head_size).transpose(1, 2)
        key = key.view(B, T, self.n_head, head_size).transpose(1, 2)
        value = value.view(B, T, self.n_head, head_size).transpose(1, 2)

        # minllm.py で書いた、内積から因果マスク、softmax、重み付きの和までと同じ計算を、1 つの関数が速く行う
        x = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B, n_head, T, head_size)

        x = x.transpose(1, 2).reshape(B, T, C)  # ヘッドを横につなぐ: -> (B, T, n_head, head_size) -> (B, T, C)
        return self.c_proj(x)


class MLP(nn.Module):
    """トークンごとに独立に働く 2 層の全結合ネットワーク。中間層は 4 倍に広い。"""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        x = self.c_fc(x)  # (B, T, n_embd) -> (B, T, 4 * n_embd)
        x = F.gelu(x, approximate="tanh")  # GELU は滑らかな ReLU。GPT-2 は、tanh による近似式で計算する
        return self.c_proj(x)  # (B, T, 4 * n_embd) -> (B, T, n_embd)


class Block(nn.Module):
    """Transformer のブロック。注意で自分と自分より前のトークンから情報を集め、MLP でトークンごとに加工する。"""

    def __init__(self, config):
        super().__init__()
        # LayerNorm は、トークンごとにベクトルの平均を 0、分散を 1 に揃え、訓練で決まる倍率を要素ごとに掛け、バイアスを足す
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        # 計算の結果を x に足す。これを残差接続といい、深く重ねたモデルを訓練しやすくする。出典: https://arxiv.org/abs/1512.03385
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 を小さくしたモデル。部品の名前も GPT-2 の実装に合わせた。GPT-2 との違いは 2 つある。

    - dropout（訓練中に、値の一部を無作為に 0 にする）を省く。
    - 残差接続で足す層（c_proj）の初期値を、1/√(2·n_layer) 倍に縮めない。
    """

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # トークンの埋め込み（番号ごとに 1 本のベクトルを持つ表）
        # 位置の埋め込み。注意だけでは、トークンが何番目にあるかが分からない（minllm_heads.py で確かめた）
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)  # ベクトルを、次のトークンのロジットにする
        # トークンを受け取る wte と、次のトークンを予測する lm_head が、1 つの重みを共有する（GPT-2 と同じ）
        # 出典: https://arxiv.org/abs/1608.05859
        self.lm_head.weight = self.wte.weight  # (vocab_size, n_embd)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        """重みを、平均 0、標準偏差 0.02（GPT-2 と同じ）の正規分布から選び、バイアスを 0 にする。"""
        # ln_f がベクトルの大きさを揃えるので、最初の損失を左右するのは lm_head の重みの大きさだけである。
        # それが小さいとロジットは 0 に近く、どのトークンの確率もほぼ 1/vocab_size になる
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx):
        """トークン番号 (B, T)（int64、T は block_size 以下）-> ロジット (B, T, vocab_size)"""
        T = idx.shape[1]
        positions = torch.arange(T, device=idx.device)  # 0, 1, …, T - 1
        x = self.wte(idx) + self.wpe(positions)  # (B, T, n_embd) + (T, n_embd) -> (B, T, n_embd)
        for block in self.h:
            x = block(x)  # (B, T, n_embd) -> (B, T, n_embd)
        return self.lm_head(self.ln_f(x))  # (B, T, n_embd) -> (B, T, vocab_size)


# %% 重みの読み込み
try:
    saved = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
    characters = saved["characters"]  # トークン番号 n の文字は characters[n]
    config = GPTConfig(**saved["config"])
    model = GPT(config)
    model.load_state_dict(saved["state_dict"])
except Exception as error:  # 壊れ方によって例外の種類が変わる
    parser.error(f"{WEIGHTS} は minllm_novel.py が作る重みとして読み込めない。minllm_novel.py で訓練して作り直す: {error!r}")
model = model.to(device).eval()
V = len(characters)
token_ids = {character: number for number, character in enumerate(characters)}  # 文字 -> トークン番号

# %% 書き出し
unknown = set(args.prompt) - set(characters)  # 訓練の文章に出てこないか、まれな文字
print("unknown characters, replaced by 〓:", "".join(sorted(unknown)) or "none")
idx = torch.tensor([[token_ids.get(character, 0) for character in args.prompt]])  # (1, T)。0 番は 〓


# %% 次の文字の確率
@torch.no_grad()
def next_logits(idx):
    """トークン番号 (1, T) -> 次の文字のロジット (V,)"""
    context = idx[:, -config.block_size :].to(device)  # モデルに渡せるのは、最後の block_size 文字まで
    logits = model(context)  # (1, T) -> (1, T, V)
    return logits[0, -1].cpu()  # 最後の位置が、次の文字を予測する: (V,)


def probabilities(logits, temperature, top_k):
    """ロジット (V,) -> 確率 (V,)。上位 top_k 文字のほかは 0 にする。温度が低いほど差が開き、高いほど平らになる。"""
    result = torch.zeros_like(logits)  # (V,)
    if temperature == 0:  # 0 では割れないので、温度を 0 に近づけていった先の、最も確率の高い 1 文字だけが残る形にする
        result[logits.argmax()] = 1
        return result
    top_logits, top_tokens = logits.topk(min(top_k, len(logits)))  # (V,) -> (k,) が 2 つ
    result[top_tokens] = (top_logits / temperature).softmax(dim=0)
    return result


# %% 表（書き出しの次の 1 文字について、温度 t と top-k の k が確率をどう変えるか）
logits = next_logits(idx)  # (V,)
low = probabilities(logits, 0.5, V)  # k が V なら、すべての文字が候補になる
normal = probabilities(logits, 1, V)  # 温度 1 は、softmax の確率そのもの
high = probabilities(logits, 2, V)
top_5 = probabilities(logits, 1, 5)
this_run = probabilities(logits, args.temperature, args.top_k)  # この実行で、書くときに使う確率
print(f"probability of the next character (t: temperature, k: number of candidates, all {V} where no k is given)")
print(f"next   t=0.5     t=1     t=2 t=1,k=5 this run (t={args.temperature:g},k={args.top_k})")
for token in logits.topk(10).indices.tolist():
    row = repr(characters[token])
    for column in (low, normal, high, top_5, this_run):
        row += f" {column[token]:7.1%}"
    print(row)

# %% 書く
written = ""
print(args.prompt, end="")
for _ in range(args.count):
    logits = next_logits(idx)  # (V,)
    chances = probabilities(logits, args.temperature, args.top_k)  # (V,)
    next_token = torch.multinomial(chances, num_samples=1)  # 確率に従って 1 文字をサンプリングする: (1,)
    idx = torch.cat([idx, next_token.unsqueeze(0)], dim=1)  # (1, T) -> (1, T + 1)
    character = characters[next_token.item()]
    written += character
    print(character, end="", flush=True)
print()

# %% 丸写しでないか（小説にそのまま出てくる最も長い部分。よくある言い回しの長さなら、丸写しではない）
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
novel = re.sub("《.*?》", "", novel)  # 掃除は minllm_tokenizer.py と同じ。探すだけなので、前書きと奥付は残す
novel = novel.replace("｜", "")
novel = re.sub("※?［＃.*?］", "", novel)
novel = re.sub("\n[\n　]*", "\n", novel)
copied = ""  # 今までに見つけた、最も長い部分
for end in range(1, len(written) + 1):
    # 長い部分が小説にあれば、その最後の 1 文字を除いた部分も小説にある。だから、見つかる長さは、end が 1 進むごとに
    # 多くても 1 しか伸びず、end で終わる部分のうち、今までより 1 文字だけ長いものを調べればよい
    candidate = written[end - len(copied) - 1 : end]
    if candidate in novel:
        copied = candidate
print(f"longest run found in the novel: {len(copied)} characters, {copied!r}")
