"""mnist.py の CNN を、複数のプロセスで分担して訓練する。プロセスは、別々の GPU や別々のマシンにあってもよい。

mnist.py との違い: ミニバッチを全プロセスで等分し、それぞれが求めた勾配を平均してから、どのプロセスも同じ更新を
する。この方法を DDP（distributed data parallel）という。データの順番は mnist.py と違うので、正解率も少し違う。

実行: python mnist_ddp.py （2 つのプロセスが起動する。数を変えるには、下の torchrun の行を見る）
結果（2 コアの CPU で約 50 秒）:
    processes: 2, each takes 32 of the 64 images of a batch
    one step, 2 processes vs 1: largest difference 6.9e-18
    epoch 2/2  test accuracy 99.38%
説明: このフォルダの README.md
試してみよう:
    - NUM_PROCESSES を 4 にすると、1 回の更新の差（one step の行）は何桁くらいの数になるか。
    - EPOCHS を 1 にし、訓練の ddp_model(images) を model(images) に変えると、勾配が平均されない。最後の重みの差はいくつか。
"""

# %% 準備
import copy
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchvision.datasets import MNIST

SEED = 0
NUM_PROCESSES = 2
EPOCHS = 2  # 訓練データを何周するか
BATCH_SIZE = 64  # 1 回の更新に、全プロセスを合わせて使う画像の枚数。プロセスの数で割り切れること
LEARNING_RATE = 8e-3  # 学習率の最大値。バッチの枚数が変わらないので、これも変えない
WEIGHT_DECAY = 0.1  # 重み減衰: 更新のたびに、重みを 0 へ少し引き戻す強さ
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "mnist_ddp.pth"  # 同梱の mnist_cnn.pth は書き換えない

# %% プロセスの起動
# torchrun は、このスクリプトを必要な数だけ起動し、それぞれの番号を環境変数で知らせる。
# python で起動されたなら番号はまだないので、ここで torchrun を呼び、終わるのを待つ
# --standalone は待ち合わせに空いたポートを使い、--local-addr はこのマシンの名前を調べずに済ませる
if "RANK" not in os.environ:
    # CPU のコアを等分する。決めておかないと、torchrun は警告を出して、どのプロセスも 1 スレッドにする
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // NUM_PROCESSES)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    sys.exit(subprocess.call([*torchrun, "--nproc-per-node", str(NUM_PROCESSES), __file__]))

rank = int(os.environ["RANK"])  # 全マシンを通したプロセスの番号
world_size = int(os.environ["WORLD_SIZE"])  # 全マシンを合わせたプロセスの数
local_rank = int(os.environ["LOCAL_RANK"])  # このマシンの中での番号
local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])  # このマシンの中のプロセスの数
if BATCH_SIZE % world_size != 0:
    raise SystemExit(f"エラー: {BATCH_SIZE} 枚を {world_size} プロセスで等分できない。プロセスの数を変える")

# %% プロセスグループ（互いに通信するプロセスの集まり）
# プロセスごとに 1 つの GPU があれば NCCL で、なければ CPU と Gloo で通信する。MPS で使える通信はない
if dist.is_nccl_available() and torch.cuda.device_count() >= local_world_size:
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl")
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")
if rank == 0:  # 表示と保存は、0 番のプロセスだけが行う
    print(f"device: {device}")
    print(f"processes: {world_size}, each takes {BATCH_SIZE // world_size} of the {BATCH_SIZE} images of a batch")
torch.manual_seed(SEED)  # 全プロセスが同じ乱数を使うので、最初の重みも、画像のずらし方も揃う

# %% データ
try:
    train_set = MNIST(HERE / "data", train=True, download=True)  # データは同梱なので、ダウンロードは起こらない
    test_set = MNIST(HERE / "data", train=False, download=True)
except Exception as error:  # 壊れ方によって例外の種類が変わる
    raise SystemExit(f"エラー: {HERE / 'data'} の MNIST が壊れている。git restore で戻すか、取得し直す: {error!r}")
train_images = (train_set.data.unsqueeze(1) / 255).to(device)  # (60000, 1, 28, 28)、値は [0, 1]
train_labels = train_set.targets.to(device)
# 全プロセスが同じ順に並べ替え、rank 番目から world_size 枚ごとに 1 枚を自分の割り当てとして取る
sampler = DistributedSampler(train_set, seed=SEED)
train_loader = DataLoader(TensorDataset(train_images, train_labels), BATCH_SIZE // world_size, sampler=sampler)
# テスト画像も、重ならないように割り当てる
test_images = (test_set.data[rank::world_size].unsqueeze(1) / 255).to(device)  # (10000 / world_size, 1, 28, 28)
test_labels = test_set.targets[rank::world_size].to(device)


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


model = CNN().to(device)

# %% 分担しても同じ更新になることの確認
# 最初の 64 枚で、SGD の更新を 1 回だけ行う。float64 にすると、足す順序の違いによる丸めの差がごく小さくなる
shared = copy.deepcopy(model).double()  # 全プロセスで分担して更新する
ddp_shared = DDP(shared)  # shared を包み、逆伝播のときに勾配を平均する。重みは shared と同じものである
my_images = train_images[rank:BATCH_SIZE:world_size].double()  # (64 / world_size, 1, 28, 28)
my_labels = train_labels[rank:BATCH_SIZE:world_size]
loss = F.cross_entropy(ddp_shared(my_images), my_labels)
loss.backward()  # 勾配を全プロセスで足し合わせ（all_reduce）、プロセスの数で割る
torch.optim.SGD(shared.parameters(), lr=0.1).step()

alone = copy.deepcopy(model).double()  # 64 枚すべてを、1 つのプロセスで使って更新する
loss = F.cross_entropy(alone(train_images[:BATCH_SIZE].double()), train_labels[:BATCH_SIZE])
loss.backward()
torch.optim.SGD(alone.parameters(), lr=0.1).step()

step_difference = 0.0
for shared_parameter, alone_parameter in zip(shared.parameters(), alone.parameters()):
    difference = (shared_parameter - alone_parameter).abs().max().item()
    step_difference = max(step_difference, difference)
if rank == 0:
    print(f"one step, {world_size} processes vs 1: largest difference {step_difference:.1e}")

# %% 訓練と評価
ddp_model = DDP(model)
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=EPOCHS * len(train_loader))
for epoch in range(1, EPOCHS + 1):
    model.train()
    sampler.set_epoch(epoch)  # 並べ替えをエポックごとに変える（呼ばないと、毎回同じ順になる）
    for step, (images, labels) in enumerate(train_loader, start=1):
        down, right = torch.randint(-1, 2, (2,)).tolist()  # 全プロセスが同じだけずらす
        images = images.roll((down, right), dims=(2, 3))

        logits = ddp_model(images)  # (B / world_size, 1, 28, 28) -> (B / world_size, 10)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

        if step % 100 == 0:
            mean_loss = loss.detach() / world_size
            dist.all_reduce(mean_loss)  # 全プロセスの値の合計に置き換わる
            if rank == 0:
                print(f"  batch {step}/{len(train_loader)}  loss {mean_loss.item():.4f}", flush=True)

    model.eval()
    with torch.no_grad():
        test_logits = torch.cat([model(images) for images in test_images.split(200)])  # (10000 / world_size, 10)
    correct = (test_logits.argmax(dim=1) == test_labels).sum()
    dist.all_reduce(correct)  # 全プロセスの正解数の合計に置き換わる
    test_accuracy = 100 * correct.item() / len(test_set)
    if rank == 0:
        print(f"epoch {epoch}/{EPOCHS}  test accuracy {test_accuracy:.2f}%", flush=True)

# %% 重みが揃っていることの確認
my_weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])  # (421642,)
all_weights = [torch.empty_like(my_weights) for _ in range(world_size)]
dist.all_gather(all_weights, my_weights)  # 全プロセスの重みを受け取る
weight_difference = 0.0
for other_weights in all_weights:
    difference = (other_weights - my_weights).abs().max().item()
    weight_difference = max(weight_difference, difference)
if rank == 0:
    print(f"largest difference between the weights of {world_size} processes: {weight_difference:.1e}")

# %% 保存
if rank == 0:
    torch.save(model.state_dict(), f"{WEIGHTS}.tmp")  # ddp_model から取ると、キーの頭に module. が付く
    os.replace(f"{WEIGHTS}.tmp", WEIGHTS)  # 書き終えてから置き換えるので、途中で止めても前の重みは壊れない
    print(f"saved: {WEIGHTS.name}")
dist.destroy_process_group()
