"""Which tasks come with Batchscope? Their names and where their functions are; nothing is imported until it is used."""

BUILT_IN: dict[str, str] = {
    "digits": "batchscope.tasks.digits:task",
    "fashion-mnist-mlp": "batchscope.tasks.fashion_mnist_mlp:task",
    "fashion-mnist-cnn": "batchscope.tasks.fashion_mnist_cnn:task",
    "stdlib-lm": "batchscope.tasks.stdlib_lm:task",
    "noisy-quadratic": "batchscope.tasks.noisy_quadratic:task",
}
