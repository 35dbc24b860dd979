"""mnist.py の CNN を、複数のプロセスで分担して訓練する。プロセスは、別々の GPU や別々のマシンにあってもよい。

mnist.py との違い: ミニバッチを全プロセスで等分し、それぞれの勾配を平均して、どのプロセスも同じ更新をする。
この方法を DDP（distributed data parallel）という。

実行: python mnist_ddp.py（2 コアの CPU で約 50 秒。プロセスは 2 つ起動する）
結果:
    processes: 2, each takes 32 of the 64 images of a batch
    one step, 2 processes vs 1: largest difference below 1e-12: True
    epoch 2/2  test accuracy 99.38%
試してみよう:
    - NUM_PROCESSES を 4 にすると、1 回の更新は、やはり 1 つのプロセスと同じか。
    - EPOCHS を 1 にし、訓練の ddp_model(images) を model(images) に変え、100 回の更新で止めると、
      重みの差はいくつか。
    - alone の 64 枚を 16 枚ずつ 4 回に分け、割らずに backward すると、勾配は何倍になるか。
解説: mnist_ddp.md
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
EPOCHS = 2
BATCH_SIZE = 64  # 1 回の更新に、全プロセスを合わせて使う画像の枚数。プロセスの数で割り切れること
LEARNING_RATE = 8e-3  # 学習率の最大値。バッチの枚数が変わらないので、mnist.py から変えない
WEIGHT_DECAY = 0.1
HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "mnist_ddp.pth"  # 同梱の mnist_cnn.pth は書き換えない

# %% プロセスの起動（python で起動されたら、torchrun を呼んで、このスクリプトを必要な数だけ起動する）
if not dist.is_torchelastic_launched():
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
if dist.is_nccl_available() and torch.cuda.device_count() >= local_world_size:  # プロセスごとに GPU がある
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl")  # GPU どうしの通信
else:
    device = torch.device("cpu")
    dist.init_process_group("gloo")  # CPU どうしの通信
if rank == 0:  # 表示と保存は、0 番のプロセスだけが行う
    print(f"device: {device}")
    share = BATCH_SIZE // world_size
    print(f"processes: {world_size}, each takes {share} of the {BATCH_SIZE} images of a batch")
torch.manual_seed(SEED)  # 全プロセスが同じ乱数を使うので、最初の重みも、画像のずらし方も揃う

# %% データ
train_set = MNIST(HERE / "data", train=True)
test_set = MNIST(HERE / "data", train=False)
train_images = (train_set.data.unsqueeze(1) / 255).to(device)  # (60000, 1, 28, 28)、値は [0, 1]
train_labels = train_set.targets.to(device)
# 全プロセスが同じ順に並べ替え、rank 番目から world_size 枚ごとに 1 枚を取る
sampler = DistributedSampler(train_set, seed=SEED)
train_dataset = TensorDataset(train_images, train_labels)
train_loader = DataLoader(train_dataset, BATCH_SIZE // world_size, sampler=sampler)
# テスト画像も、重ならないように割り当てる: (10000 / world_size, 1, 28, 28)
test_images = (test_set.data[rank::world_size].unsqueeze(1) / 255).to(device)
test_labels = test_set.targets[rank::world_size].to(device)


# %% モデル（mnist.py と同じ。読み飛ばしてよい）
class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x)


model = CNN().to(device)

# %% 確かめる: 最初の 64 枚での 1 回の更新は、分担しても、1 つのプロセスと同じである
shared = copy.deepcopy(model).double()  # float64 なら、足す順序の違いによる丸めの差はごく小さい
ddp_shared = DDP(shared)  # shared を包み、逆伝播のときに勾配を平均する。重みは shared と同じものである
my_images = train_images[rank:BATCH_SIZE:world_size].double()  # (64 / world_size, 1, 28, 28)
my_labels = train_labels[rank:BATCH_SIZE:world_size]
loss = F.cross_entropy(ddp_shared(my_images), my_labels)
loss.backward()  # 勾配を全プロセスで足し合わせ（all_reduce）、プロセスの数で割る
torch.optim.SGD(shared.parameters(), lr=0.1).step()

alone = copy.deepcopy(model).double()  # 64 枚すべてを、1 つのプロセスで使う
images, labels = train_images[:BATCH_SIZE].double(), train_labels[:BATCH_SIZE]
loss = F.cross_entropy(alone(images), labels)
loss.backward()
torch.optim.SGD(alone.parameters(), lr=0.1).step()

shared_weights = nn.utils.parameters_to_vector(shared.parameters())  # すべてを 1 列に並べる: (421642,)
alone_weights = nn.utils.parameters_to_vector(alone.parameters())
step_difference = (shared_weights - alone_weights).abs().max().item()
if rank == 0:
    shared_gradient = shared.classifier[3].bias.grad[0].item()  # ロジット 0 のバイアスの勾配
    alone_gradient = alone.classifier[3].bias.grad[0].item()
    print(f"one gradient: {shared_gradient:.6f} by {world_size} processes, {alone_gradient:.6f} by 1")
    print(f"one step, {world_size} processes vs 1: largest difference below 1e-12: {step_difference < 1e-12}")

# %% 訓練と評価
ddp_model = DDP(model)
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
total_steps = EPOCHS * len(train_loader)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps)
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

        if rank == 0 and step % 100 == 0:  # 進み具合。自分の分の画像だけの損失
            print(f"  batch {step}/{len(train_loader)}  loss {loss.item():.4f}", flush=True)

    model.eval()
    with torch.no_grad():
        predictions = [model(images).argmax(dim=1) for images in test_images.split(200)]
    correct = (torch.cat(predictions) == test_labels).sum()
    dist.all_reduce(correct)  # 全プロセスの正解数の合計に置き換わる
    test_accuracy = 100 * correct.item() / len(test_set)
    if rank == 0:
        print(f"epoch {epoch}/{EPOCHS}  test accuracy {test_accuracy:.2f}%", flush=True)

# %% 確かめる: 訓練の後、全プロセスの重みは等しい
my_weights = nn.utils.parameters_to_vector(model.parameters()).detach()  # (421642,)
all_weights = [torch.empty_like(my_weights) for _ in range(world_size)]
dist.all_gather(all_weights, my_weights)  # 全プロセスの重みを受け取る
weight_difference = (torch.stack(all_weights) - my_weights).abs().max().item()
if rank == 0:
    print(f"largest difference between the weights of {world_size} processes: {weight_difference:.4f}")

# %% 保存
if rank == 0:
    torch.save(model.state_dict(), WEIGHTS)  # ddp_model から取ると、キーの頭に module. が付く
    print(f"saved: {WEIGHTS.name}")
dist.barrier()  # 全プロセスがここに来るまで待つ
del ddp_shared, ddp_model  # 通信を使うものを捨ててから、通信を閉じる
dist.destroy_process_group()
