"""訓練済みの GPT に、好きな書き出しの続きを書かせる。温度と top-k が何をするかを、次の文字の確率で見る。

前のレッスン（minllm_novel.py）との違い: 訓練はせず、保存された重みを読み込んで書く。最後に、小説の丸写しでないかを調べる。

実行: python minllm_write.py （-p 主人は で書き出しを変え、-t 0 でいつも最もありそうな文字を選ぶ）
結果（2 コアの CPU で約 2 秒）:
    longest run found in the novel: 8 characters, 'と何にも知らない'
試してみよう:
    - -t 0、-t 0.5、-t 2 で書く文章を比べる。同じ言葉を繰り返すのはどれで、言葉にならないのはどれか。
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
    sys.stdout.reconfigure(errors="replace")  # 日本語を表せない端末でも、止まらずに ? と書く
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-p", "--prompt", default="吾輩は", help="書き出し（既定: 吾輩は）")
parser.add_argument("-n", "--count", type=int, default=200, help="書く文字の数（既定: 200）")
parser.add_argument("-t", "--temperature", type=float, default=0.8, help="温度。0 なら最も確率の高い文字（既定: 0.8）")
parser.add_argument("-k", "--top-k", type=int, default=40, help="確率の高い方から何文字の中で選ぶか（既定: 40）")
args = parser.parse_args()  # セルごとに実行するときは parse_args([]) とする
if not args.prompt or args.count < 1 or args.top_k < 1 or not 0 <= args.temperature <= 100:
    parser.error("--prompt は 1 文字以上、--count と --top-k は 1 以上、--temperature は 0 以上 100 以下にする")
torch.set_num_threads(1)  # 行列が小さければ 1 スレッドでも大差なく、ほかのプログラムが動いていても遅くなりにくい
device = torch.device("mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu")
print(f"device: {device}")
torch.manual_seed(SEED)


# %% モデル（minllm_novel.py と同じ）
@dataclass
class GPTConfig:
    """モデルの大きさ。"""
    vocab_size: int  # 文字の種類。データで決まる
    block_size: int = 64  # 一度に読める文字の最大の長さ
    n_layer: int = 2  # ブロックの数
    n_head: int = 4  # 注意のヘッドの数
    n_embd: int = 112  # 1 文字を表すベクトルの長さ


class CausalSelfAttention(nn.Module):
    """自分と自分より前のトークンだけを見る、マルチヘッド自己注意。出典: https://arxiv.org/abs/1706.03762"""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)  # query（何を探すか）、key（何を持つか）、value（渡す中身）
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, -1)  # (B, T, 3C) -> (B, T, 3, n_head, head_size)
        query, key, value = qkv.transpose(1, 3).unbind(2)  # (B, n_head, T, head_size) が 3 つ
        # minllm.py で書いた、内積から重み付きの和までの計算と同じ。因果マスクも含めて 1 度に速く行う
        x = F.scaled_dot_product_attention(query, key, value, is_causal=True)  # (B, n_head, T, head_size)
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
        x = F.gelu(self.c_fc(x), approximate="tanh")  # GELU は滑らかな ReLU: (B, T, n_embd) -> (B, T, 4 * n_embd)
        return self.c_proj(x)  # (B, T, 4 * n_embd) -> (B, T, n_embd)


class Block(nn.Module):
    """Transformer のブロック。注意で他のトークンから情報を集め、MLP で加工する。"""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)  # トークンごとに、ベクトルの平均を 0、分散を 1 に揃える
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        """(B, T, n_embd) -> (B, T, n_embd)"""
        x = x + self.attn(self.ln_1(x))  # x をそのまま足す道（残差接続）があるので、層を重ねても勾配が届く
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 の形をしたモデル。wte と lm_head が重みを共有する（https://arxiv.org/abs/1608.05859）。"""

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)  # トークンの埋め込み
        self.wpe = nn.Embedding(config.block_size, config.n_embd)  # 位置の埋め込み
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight  # 同じ重みが、読む役と当てる役の両方で学ぶので、まれな文字も早く覚える
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)  # 小さな値から始めると、どの文字の確率もほぼ 1/vocab_size になる
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, idx):
        """トークン番号 (B, T)（int64、T は block_size 以下）-> ロジット (B, T, vocab_size)"""
        T = idx.shape[1]
        x = self.wte(idx) + self.wpe(torch.arange(T, device=idx.device))  # (B, T, n_embd) + (T, n_embd)
        for block in self.h:
            x = block(x)  # (B, T, n_embd)
        return self.lm_head(self.ln_f(x))  # (B, T, n_embd) -> (B, T, vocab_size)


# %% 重みの読み込み
try:
    saved = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
    characters, config = saved["characters"], GPTConfig(**saved["config"])
    model = GPT(config).to(device).eval().requires_grad_(False)  # 書くだけなので、勾配はいらない
    model.load_state_dict(saved["state_dict"])
except Exception as error:  # 壊れ方によって例外の種類が変わる
    parser.error(f"{WEIGHTS} は minllm_novel.py が作る重みとして読めない。minllm_novel.py で訓練して作り直す: {error!r}")


# %% 書く
def probabilities(logits, temperature, top_k):
    """ロジット (V,) -> 確率 (V,)。上位 top_k 文字のほかは 0 にする。温度が低いほど差が開き、高いほど平らになる。"""
    top_logits, top = logits.topk(min(top_k, len(logits)))  # (V,) -> (k,) が 2 つ
    # 0 では割れないので、代わりに 0 に近い数で割る。差がとても大きくなり、最も確率の高い 1 文字だけが残る
    return torch.zeros_like(logits).scatter(0, top, (top_logits / max(temperature, 1e-9)).softmax(dim=0))


idx = torch.tensor([[max(characters.find(character), 0) for character in args.prompt]])  # (1, T)。0 番は 〓
print("unknown characters, read as 〓:", "".join(sorted(set(args.prompt) - set(characters))) or "none")
written = ""
for _ in range(args.count):
    logits = model(idx[:, -config.block_size :].to(device))[0, -1].cpu()  # (1, T) -> (1, T, V) の最後の位置 (V,)
    if not written:  # 最初の 1 文字について、温度と top-k が確率をどう変えるかを見る
        print("next   t=0.5     t=1     t=2 t=1,k=5")
        table = [probabilities(logits, t, k) for t, k in zip((0.5, 1, 2, 1), 3 * [len(logits)] + [5])]  # (V,) が 4 つ
        for token in logits.topk(10).indices:
            print(repr(characters[token]), *(f"{column[token]:7.1%}" for column in table))
        print(args.prompt, end="")
    next_token = torch.multinomial(probabilities(logits, args.temperature, args.top_k), num_samples=1)  # (1,)
    idx = torch.cat([idx, next_token.unsqueeze(0)], dim=1)  # (1, T) -> (1, T + 1)
    written += characters[next_token]
    print(written[-1], end="", flush=True)

# %% 丸写しでないか（小説にそのまま出てくる最も長いところ。よくある言い回しの長さなら、丸写しではない）
novel = (HERE / "data" / "wagahaiwa_nekodearu.txt").read_text(encoding="utf-8")
novel = re.sub(r"\n[\n　]*", "\n", re.sub(r"《.*?》|※?［＃.*?］|｜", "", novel))  # 探すだけなので、前書きと奥付は残す
copied = ""
for end in range(1, len(written) + 1):
    if written[end - len(copied) - 1 : end] in novel:  # 今までの最長より 1 文字長いものがあるか
        copied = written[end - len(copied) - 1 : end]
print(f"\nlongest run found in the novel: {len(copied)} characters, {copied!r}")
