"""A layer whose module does to its process what the environment asks for, before it loads Keras, which takes long."""

import os
import time

match os.environ.get("MISBEHAVE"):
    case "abort":
        os.abort()
    case "exit":
        os._exit(3)
    case "hang":
        time.sleep(600)

import keras


@keras.saving.register_keras_serializable("misbehaving")
class Same(keras.layers.Layer):
    def call(self, x):
        if os.environ.get("MISBEHAVE") == "fail":
            raise ZeroDivisionError("so it was asked for")
        return x
