"""よくある書き方の MNIST の訓練。benchmark.py が mnist.py と比べる相手で、レッスンではない。

実行: python tests/common_recipe.py mlp （または cnn）。目標の正解率に届くまで、最大 15 エポック訓練する
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

TARGET = {"mlp": 98.0, "cnn": 99.2}  # テストの正解率（%）
BATCH_SIZE = 64
DATA = Path(__file__).resolve().parent.parent / "02_pytorch_mnist" / "data"
MODELS = {  # mnist.py と同じ形
    "mlp": nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10)),
    "cnn": nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    ),
}

model_type = sys.argv[1]
train_set, test_set = (MNIST(DATA, train=train, transform=ToTensor()) for train in (True, False))
train_loader = DataLoader(train_set, batch_size=BATCH_SIZE, shuffle=True)  # 1 枚ずつ変換して積む
test_loader = DataLoader(test_set, batch_size=500)
model = MODELS[model_type]
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(1, 16):
    model.train()
    for images, labels in train_loader:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        correct = sum((model(images).argmax(dim=1) == labels).sum().item() for images, labels in test_loader)
    accuracy = 100 * correct / len(test_set)
    print(f"epoch {epoch}/15  test accuracy {accuracy:.2f}%", flush=True)
    if accuracy >= TARGET[model_type]:
        break
