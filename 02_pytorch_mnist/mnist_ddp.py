"""mnist.py の CNN を、複数のプロセス（複数の GPU、複数のマシン）で手分けして訓練する。

前のレッスン（mnist.py）との違い: 1 つのバッチを全プロセスで等分し、各自が求めた勾配を平均してから、同じ更新をする。

実行: python mnist_ddp.py （2 プロセスなら torchrun --nproc-per-node 2 mnist_ddp.py、複数のマシンなら README を見る）
結果（2 コアの CPU で約 35 秒）:
    processes: 1, each takes 64 of the 64 images of a batch
    epoch 2/2  test accuracy 99.45%
試してみよう:
    - --nproc-per-node を 1、2、4 と変え、途中の損失を比べる（丸めの差が育つので、少しずつ離れていく）。
    - ddp_model(images…) を model(images…) に変えると、勾配が平均されない。最後に比べる重みの差はいくつになるか。
"""

# %% 準備
import copy
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn  # 組を作った後に読むと、関数の既定値が組への参照を持ち続けるので、先に読んでおく
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchvision.datasets import MNIST

SEED = 0
EPOCHS = 2  # 訓練データを何周するか
BATCH_SIZE = 64  # 1 回の更新に、全プロセスを合わせて使う画像の枚数。プロセスの数で割り切れること
LEARNING_RATE = 8e-3  # 学習率の最大値。バッチの枚数が変わらないので、これも変えない
WEIGHT_DECAY = 0.1  # 重みを 0 へ引き戻す強さ。丸暗記を抑える
LABEL_SMOOTHING = 0.05  # ラベル平滑化: 正解の確率の目標を 1 より少し下げ、過信を抑える
TIMEOUT = timedelta(seconds=60)  # 通信の相手が黙って消えたとき、あきらめるまでの時間
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "mnist_ddp.pth"  # 同梱の mnist_cnn.pth は書き換えない

# %% プロセスの組（process group）
# torchrun はこのスクリプトを必要な数だけ起動し、環境変数で番号を知らせる。torchrun を使わなければ、1 プロセスの組になる
rank = int(os.environ.get("RANK", 0))  # 全マシンを通した番号
world_size = int(os.environ.get("WORLD_SIZE", 1))  # 全マシンを合わせたプロセスの数
local_rank = int(os.environ.get("LOCAL_RANK", 0))  # このマシンの中での番号
local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # このマシンの中のプロセスの数
if rank != 0:
    sys.stdout = open(os.devnull, "w")  # 表示は 0 番に任せる
if local_world_size > 1:  # CPU のコアを等分する（torchrun に任せると、1 スレッドずつしか使わない）
    torch.set_num_threads(max(1, os.cpu_count() // local_world_size))
cuda = dist.is_nccl_available() and torch.cuda.device_count() >= local_world_size  # 1 プロセスに 1 GPU
device = torch.device(f"cuda:{local_rank}" if cuda else "cpu")
if cuda:
    torch.cuda.set_device(device)
print(f"device: {device}" + (" (MPS has no distributed backend)" if torch.backends.mps.is_available() else ""))
store = None if "RANK" in os.environ else dist.HashStore()  # 待ち合わせの場所。1 プロセスなら、自分のメモリの中で足りる
try:
    dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=world_size, store=store, timeout=TIMEOUT)
except RuntimeError as error:
    raise SystemExit(f"エラー: プロセスの組を作れない。ポートとマシンのアドレスを確かめる（{str(error).splitlines()[0]}）")
if BATCH_SIZE % world_size != 0:
    raise SystemExit(f"エラー: {BATCH_SIZE} 枚を {world_size} プロセスで等分できない。プロセスの数を変える" if rank == 0 else 1)
print(f"processes: {world_size}, each takes {BATCH_SIZE // world_size} of the {BATCH_SIZE} images of a batch")
torch.manual_seed(SEED)  # 全員が同じ乱数を使うので、最初の重みも、画像のずらし方も揃う

# %% データ
train_set, test_set = (MNIST(HERE / "data", train=train, download=True) for train in (True, False))
train_images, train_labels = (train_set.data.unsqueeze(1) / 255).to(device), train_set.targets.to(device)
sampler = DistributedSampler(train_set, seed=SEED)  # 全員が同じ順に並べ替え、rank 番目から、world_size 枚ごとに 1 枚を受け持つ
train_loader = DataLoader(TensorDataset(train_images, train_labels), BATCH_SIZE // world_size, sampler=sampler)
test_images = (test_set.data[rank::world_size].unsqueeze(1) / 255).to(device)  # (10000 / world_size, 1, 28, 28)
test_labels = test_set.targets[rank::world_size].to(device)  # テスト画像は、1 枚も重ねずに分け合う


# %% モデル（mnist.py と同じ）
class CNN(nn.Module):
    """画像の縦横の並びを保ったまま読む、畳み込みネットワーク（421,642 パラメータ）。"""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1),  # (B, 1, 28, 28) -> (B, 32, 28, 28)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 32, 28, 28) -> (B, 32, 14, 14)
            nn.Conv2d(32, 64, kernel_size=3, padding=1),  # (B, 32, 14, 14) -> (B, 64, 14, 14)
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 64, 14, 14) -> (B, 64, 7, 7)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),  # (B, 64, 7, 7) -> (B, 3136)
            nn.Linear(64 * 7 * 7, 128),  # (B, 3136) -> (B, 128)
            nn.ReLU(),
            nn.Linear(128, 10),  # (B, 128) -> (B, 10)
        )

    def forward(self, x):
        """画像 (B, 1, 28, 28)、値は [0, 1] -> ロジット (B, 10)"""
        x = self.features(x)  # (B, 1, 28, 28) -> (B, 64, 7, 7)
        return self.classifier(x)  # (B, 64, 7, 7) -> (B, 10)


model = CNN().to(device, memory_format=torch.channels_last)  # CPU の畳み込みが速い並べ方（実測）

# %% 手分けしても同じ 1 歩になることの確認（最初の 64 枚で、SGD の 1 歩を進める）
together, alone = (copy.deepcopy(model).double() for _ in range(2))  # float64 なら、足す順序による丸めの差はごく小さい
for network, part in [(DDP(together), slice(rank, BATCH_SIZE, world_size)), (alone, slice(BATCH_SIZE))]:
    F.cross_entropy(network(train_images[part].double()), train_labels[part]).backward()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
step_difference = max((p - q).abs().max().item() for p, q in zip(together.parameters(), alone.parameters()))
print(f"one step, {world_size} processes vs 1: largest difference {step_difference:.1e}")

# %% 訓練と評価
ddp_model = DDP(model)  # 重みは model と共有する
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=EPOCHS * len(train_loader))
for epoch in range(1, EPOCHS + 1):
    sampler.set_epoch(epoch)  # 並べ替えをエポックごとに変える（呼ばないと、毎回同じ順になる）
    model.train()
    for step, (images, labels) in enumerate(train_loader, start=1):
        shifts = torch.randint(-1, 2, (2,)).tolist()  # 全員が同じだけずらす
        logits = ddp_model(images.roll(shifts, dims=(2, 3)))  # (B / world_size, 1, 28, 28) -> (B / world_size, 10)
        loss = F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
        loss.backward()  # DDP が all_reduce で勾配を足し合わせ、プロセスの数で割る
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % 100 == 0:
            mean_loss = loss.detach() / world_size
            dist.all_reduce(mean_loss)  # 全員の値の合計に置き換わる
            print(f"  batch {step}/{len(train_loader)}  loss {mean_loss.item():.4f}", flush=True)

    model.eval()
    with torch.no_grad():
        test_logits = torch.cat([model(batch) for batch in test_images.split(200)])  # (10000 / world_size, 10)
    correct = (test_logits.argmax(dim=1) == test_labels).sum()
    dist.all_reduce(correct)  # 全員の正解数の合計に置き換わる
    test_accuracy = 100 * correct.item() / len(test_set)
    print(f"epoch {epoch}/{EPOCHS}  test accuracy {test_accuracy:.2f}%", flush=True)

# %% 重みが揃っていることの確認と保存
weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])  # (421642,)
everyone = [torch.empty_like(weights) for _ in range(world_size)]
dist.all_gather(everyone, weights)  # 全員の重みを受け取る
weight_difference = max((other - weights).abs().max().item() for other in everyone)
print(f"largest difference between the weights of {world_size} processes: {weight_difference:.1e}")
if rank == 0:
    torch.save(model.state_dict(), f"{WEIGHTS}.{os.getpid()}")  # ddp_model から取ると、キーの頭に module. が付く
    os.replace(f"{WEIGHTS}.{os.getpid()}", WEIGHTS)  # 書き終えてから置き換えるので、途中で止めても前の重みは壊れない
    print(f"saved: {WEIGHTS}")
del ddp_model  # 組を使うものを先に消す（残すと通信のスレッドが動き続け、終わり際に異常終了することがある）
dist.destroy_process_group()
