"""The data sets that experiments learn from, by name."""

from types import MappingProxyType

from experiments.data.cifar import read_binary, read_python
from experiments.data.digits import read_digits
from experiments.data.folders import read_domains, read_folders
from experiments.data.mnist import read_idx, read_npz
from experiments.data.stored import read_emoji, read_pacs, read_split
from experiments.data.types import Known, Remote
from experiments.data.usps import read_h5, read_libsvm

CIFAR_SITE, MNIST_SITE, USPS_SITE = (
    "https://www.cs.toronto.edu/~kriz",
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass",
)

MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}

CATALOGUE = MappingProxyType(
    {
        "cifar10": Known(
            "CIFAR-10",
            (32, 32, 3),
            10,
            (50_000, 10_000),
            "https://www.cs.toronto.edu/~kriz/cifar.html, for research, with citation (Krizhevsky 2009)",
            ("cifar-10-batches-py", "cifar-10-batches-bin"),
            (read_split, read_python, read_binary, read_folders),
            (Remote(f"{CIFAR_SITE}/cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a"),),
        ),
        "cifar100": Known(
            "CIFAR-100",
            (32, 32, 3),
            100,
            (50_000, 10_000),
            "https://www.cs.toronto.edu/~kriz/cifar.html, for research, with citation (Krizhevsky 2009)",
            ("cifar-100-python", "cifar-100-binary"),
            (read_split, read_python, read_binary, read_folders),
            (Remote(f"{CIFAR_SITE}/cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85"),),
        ),
        "mnist": Known(
            "MNIST",
            (28, 28, 1),
            10,
            (60_000, 10_000),
            "http://yann.lecun.com/exdb/mnist, CC BY-SA 3.0 (LeCun, Cortes, Burges)",
            ("MNIST/raw", "raw"),
            (read_idx, read_npz, read_folders),
            tuple(Remote(f"{MNIST_SITE}/{file}", f"md5:{digest}") for file, digest in MNIST_FILES.items()),
        ),
        "usps": Known(
            "USPS",
            (16, 16, 1),
            10,
            (7_291, 2_007),
            f"{USPS_SITE}.html#usps, no licence stated (Hull 1994)",
            ("USPS",),
            (read_h5, read_libsvm, read_folders),
            (
                Remote(f"{USPS_SITE}/usps.bz2", "md5:ec16c51db3855ca6c91edd34d0e9b197"),
                Remote(f"{USPS_SITE}/usps.t.bz2", "md5:8ea070ee2aca1ac39742fdd1ef5ed118"),
            ),
        ),
        "digits": Known("digits", (8, 8, 1), 10, None, "scikit-learn, BSD-3", bundled=read_digits),
        "pacs": Known(
            "PACS",
            (32, 32, 3),
            7,
            None,
            "the authors' site of PACS (Li et al. 2017), no licence stated, for research",
            ("PACS",),
            (read_pacs, read_domains),
        ),
        "emoji": Known(
            "emoji in five styles",
            (32, 32, 3),
            9,
            None,
            "Noto (Apache-2.0), Twemoji (CC BY 4.0), OpenMoji (CC BY-SA 4.0), Fluent 3D (MIT)",
            ("emoji_domains",),
            (read_emoji,),
        ),
    }
)
