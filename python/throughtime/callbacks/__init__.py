"""Callbacks that measure gradient flow in the training loops of Lightning, Hugging Face transformers and Keras.

``throughtime.callbacks.lightning``, ``throughtime.callbacks.transformers`` and ``throughtime.callbacks.keras`` each
have a ``FlowMonitorCallback``. None is imported here, because each needs its framework.
"""
