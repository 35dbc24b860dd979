"""ミニ GPT を組み立て、トークン番号がロジットになるまでの形と、未来を見ない仕組みを確かめる。

前のレッスン（learn_class_decision_boundary.py）との違い: GPT-2 と同じ部品（埋め込み、因果的自己注意、GELU の MLP、各部品の手前に置く LayerNorm）を
小さく作る。訓練はまだしない。訓練するのは次の minllm_addition.py である。

実行: python minllm.py
結果（2 コアの CPU で約 2 秒）:
    lm_head         (2, 32, 1000)
    first loss 6.9258, ln(1000) = 6.9078
    change the last token: the logits before it differ by 0.0
試してみよう:
    - n_layer を 4 にすると、パラメータはいくつ増えるか。
    - CausalSelfAttention の masked_fill の行を消すと、最後の行の 0.0 はどんな値になるか。
    - std=0.02 を 1.0 にすると、最初の損失はなぜ ln(1000) から離れるか。
"""

import argparse
import math
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

BATCH_SIZE = 2


@dataclass
class GPTConfig:
    """モデルの大きさ。GPT-2 small の値は順に 50257, 1024, 12, 12, 768 である。"""

    vocab_size: int = 1000  # トークンの種類
    block_size: int = 32  # 一度に読めるトークンの最大の長さ
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


@torch.no_grad()
def print_shapes(model, idx):
    """順伝播をしながら、各部品の出力の形を通った順に表示し、ロジット (B, T, vocab_size) を返す。"""
    print(f"{'token ids':15s} {tuple(idx.shape)}")
    # hook は、その部品の順伝播が終わるたびに (部品, 入力, 出力) を受け取って呼ばれる
    hooks = [
        part.register_forward_hook(lambda part, args, output, name=name: print(f"{name:15s} {tuple(output.shape)}"))
        for name, part in model.named_modules()
        if name not in ("", "h")
    ]
    logits = model(idx)
    for hook in hooks:
        hook.remove()
    print(f"{'logits':15s} {tuple(logits.shape)}")
    return logits


@torch.no_grad()
def largest_change_before_last(model, idx):
    """最後のトークンだけを別のものに変えたとき、それより前のロジットがどれだけ変わるか（最大の差）を返す。"""
    changed = idx.clone()
    changed[:, -1] = (changed[:, -1] + 1) % model.config.vocab_size
    return (model(changed) - model(idx))[:, :-1].abs().max().item()


def parse_args(argv):
    """コマンドラインの引数を調べて返す。正しくない引数は 1 行で知らせて終わる（SystemExit）。"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # argparse の英語のエラーを、日本語の 1 行に置き換える
    parser.error = lambda message: sys.exit(f"エラー: 引数が正しくない（{message}）。使い方は --help で見られる")
    parser.add_argument("-d", "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
                        help="計算するデバイス（既定: auto。MPS、CUDA、CPU の順に使えるものを選ぶ）")
    parser.add_argument("--seed", type=int, default=0, help="乱数のシード（既定: 0）")
    args = parser.parse_args(argv)
    if not 0 <= args.seed < 2**32:
        parser.error("--seed は 0 以上 2**32 未満の整数にする")
    return args


def main(argv=None):
    args = parse_args(argv)
    device = select_device(args.device)
    torch.manual_seed(args.seed)
    print(f"device: {device}")

    config = GPTConfig()
    model = GPT(config).to(device).eval()
    print("\nparameters:")
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    for name, number in {**parameters, "total": sum(parameters.values())}.items():
        print(f"{name:8s} {number:7d}")

    print("\nshapes (B, T, ...):")
    idx = torch.randint(config.vocab_size, (BATCH_SIZE, config.block_size)).to(device)
    logits = print_shapes(model, idx)

    # どの位置でも、次のトークンを当てる。だから正解は idx を 1 つずらしたものである
    first_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), idx[:, 1:].flatten()).item()
    print(f"\nfirst loss {first_loss:.4f}, ln({config.vocab_size}) = {math.log(config.vocab_size):.4f}")
    change = largest_change_before_last(model, idx)
    print(f"change the last token: the logits before it differ by {change}")
    return {"model": model, "parameters": parameters, "logits": logits, "first_loss": first_loss, "change": change}


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # Jupyter の stdout にはない
        sys.stdout.reconfigure(errors="backslashreplace")  # 端末が表せない文字があっても止まらない
    main()
