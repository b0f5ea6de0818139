"""Hugging Face transformers: networks from tiny configurations, in the LightningModule that most projects write."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from thirdparty.case import Case

REQUIREMENTS = ("transformers==5.24.0",)
TITLE = "transformers"
DISTRIBUTIONS = ("transformers", "torch", "lightning")
NOTE = (
    "The modules are those that most projects write around a network: `self.model(**batch).loss`. All networks "
    "are built from configurations in code; nothing is downloaded."
)


def _module(network: Any) -> Any:
    """The usual wrapper: the network computes its own loss from the labels of the batch."""
    import lightning as L

    class HuggingFaceModule(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network

        def forward(self, **inputs: Tensor) -> Any:
            return self.model(**inputs)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = self(**batch).loss
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            outputs = self(**batch)
            self.log("val_loss", outputs.loss)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    return HuggingFaceModule()


def _loaders(rows: list[dict[str, Tensor]]) -> tuple[Any, Any]:
    return DataLoader(rows, batch_size=4), DataLoader(rows[:4], batch_size=4)


def _padded(label: str) -> tuple[Any, Any]:
    """Ten sentences of 8 tokens, padded at the end, with one class each or one class for each token."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i in range(10):
        ids, length = torch.randint(5, 40, (8,), generator=generator), 8 - i % 4
        mask = (torch.arange(8) < length).long()
        tags = ids % 3 if label == "tokens" else ids.clone()
        labels = {"sentence": torch.tensor(i % 3), "number": torch.tensor(i / 3)}
        row = {"input_ids": torch.where(mask.bool(), ids, 0), "attention_mask": mask}
        if label == "answer":
            rows.append({**row, "start_positions": torch.tensor(i % 3), "end_positions": torch.tensor(3 + i % 2)})
        else:
            rows.append({**row, "labels": labels.get(label, torch.where(mask.bool(), tags, -100))})
    return _loaders(rows)


def _counted() -> tuple[Any, Any]:
    """Batches that say over how many tokens the loss is a mean, as the Trainer of transformers does."""

    def collate(rows: Any) -> dict[str, Tensor]:
        batch = default_collate(rows)
        return {**batch, "num_items_in_batch": (batch["labels"][:, 1:] != -100).sum()}

    train, first = _padded("text")
    return tuple(DataLoader(loader.dataset, batch_size=4, collate_fn=collate) for loader in (train, first))


def _images(dense: bool, labels: int = 3) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i in range(10):
        image = torch.randn(3, 32, 32, generator=generator)
        mask = torch.randint(0, max(labels, 2), (32, 32), generator=generator)
        mask[: i % 4] = 255  # what is ignored
        rows.append({"pixel_values": image, "labels": mask if dense else torch.tensor(i % 3)})
    return _loaders(rows)


_SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
_STILL = {"initializer_range": 0.5, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert() -> Any:
    """A classifier of sentences."""
    from transformers import BertConfig, BertForSequenceClassification

    return _module(BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **_SMALL, **_STILL)))


def bert_tokens() -> Any:
    """A tagger of tokens."""
    from transformers import BertConfig, BertForTokenClassification

    return _module(BertForTokenClassification(BertConfig(vocab_size=40, num_labels=3, **_SMALL, **_STILL)))


def bert_number() -> Any:
    """A regression of one number for each sentence."""
    from transformers import BertConfig, BertForSequenceClassification

    return _module(BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=1, **_SMALL, **_STILL)))


def bert_questions() -> Any:
    """The first and the last token of an answer: two criteria."""
    from transformers import BertConfig, BertForQuestionAnswering

    return _module(BertForQuestionAnswering(BertConfig(vocab_size=40, **_SMALL, **_STILL)))


def t5() -> Any:
    """A translation, whose decoder reads the labels."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    return _module(T5ForConditionalGeneration(T5Config(vocab_size=40, decoder_start_token_id=0, **sizes)))


def mixtral() -> Any:
    """A language model of two experts, whose loss has a second part."""
    from transformers import MixtralConfig, MixtralForCausalLM

    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "output_router_logits": True}
    small = {**_SMALL, "num_key_value_heads": 2, "router_aux_loss_coef": 0.1, "initializer_range": 0.5}
    return _module(MixtralForCausalLM(MixtralConfig(vocab_size=40, **small, **experts)))


def vit_labels() -> Any:
    """A tagger of images with several labels each."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(image_size=32, patch_size=8, num_labels=3, problem_type="multi_label_classification", **_SMALL)
    return _module(ViTForImageClassification(config))


def gpt2() -> Any:
    """A language model."""
    from transformers import GPT2Config, GPT2LMHeadModel

    still = {"initializer_range": 0.5, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return _module(GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16, **still)))


def vit() -> Any:
    """A classifier of images."""
    from transformers import ViTConfig, ViTForImageClassification

    return _module(
        ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=3, initializer_range=0.5, **_SMALL))
    )


def segformer(labels: int = 3) -> Any:
    """A segmenter, whose logits are upsampled before the loss."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    four = {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
    four |= {"classifier_dropout_prob": 0.0, "drop_path_rate": 0.0}
    config = SegformerConfig(num_labels=labels, decoder_hidden_size=16, semantic_loss_ignore_index=255, **four)
    return _module(SegformerForSemanticSegmentation(config))


def _partly_labelled() -> tuple[Any, Any]:
    rows = [dict(row) for row in _images(dense=False)[0].dataset]
    for row in rows[1::4]:
        row["labels"] = torch.tensor(-100)
    return _loaders(rows)


def _tagged() -> tuple[Any, Any]:
    rows = [{**row, "labels": torch.eye(3)[row["labels"]].cumsum(0)} for row in _images(dense=False)[0].dataset]
    return _loaders(rows)


def _evaluate(data: Any, rows: Any = lambda logits, labels: (logits.flatten(0, -2), labels.flatten())) -> Any:
    def evaluate(module: Any) -> tuple[Tensor, Tensor]:
        (batch,) = data()[1]
        with torch.no_grad():
            logits = module(**batch).logits
        return rows(logits, batch["labels"])

    return evaluate


def _shifted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return logits.flatten(0, -2), torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100).flatten()


def _upsampled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    large = torch.nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return large.movedim(1, -1).flatten(0, -2), torch.where(labels == 255, -100, labels).flatten()


def _one_class(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits, labels = _upsampled(logits, labels)
    return logits[:, 0], labels


def _network(module: Any) -> Any:
    return module.model


CASES = (
    Case(
        name="BERT, sentences",
        about="BertForSequenceClassification, padded",
        module=bert,
        data=lambda: _padded("sentence"),
        samples=4,
        teacher=_network,
        same_teacher=True,
        drawless=True,
        evaluate=_evaluate(lambda: _padded("sentence")),
    ),
    Case(
        name="BERT, tokens",
        about="BertForTokenClassification, padded, with labels of -100",
        module=bert_tokens,
        data=lambda: _padded("tokens"),
        samples=4,
        teacher=_network,
        same_teacher=True,
        drawless=True,
        evaluate=_evaluate(lambda: _padded("tokens")),
    ),
    Case(
        name="GPT-2",
        about="GPT2LMHeadModel with tied weights, padded, with labels of -100",
        module=gpt2,
        data=lambda: _padded("text"),
        samples=4,
        teacher=_network,
        same_teacher=True,
        drawless=True,
        evaluate=_evaluate(lambda: _padded("text"), _shifted),
    ),
    Case(
        name="ViT",
        about="ViTForImageClassification",
        module=vit,
        data=lambda: _images(dense=False),
        samples=4,
        teacher=_network,
        same_teacher=True,
        drawless=True,
        evaluate=_evaluate(lambda: _images(dense=False)),
    ),
    Case(
        name="SegFormer",
        about="SegformerForSemanticSegmentation; pixels of 255 are ignored",
        module=segformer,
        data=lambda: _images(dense=True),
        samples=4,
        teacher=_network,
        settings={"head": "model.decode_head.classifier"},
        drawless=True,
        evaluate=_evaluate(lambda: _images(dense=True), _upsampled),
    ),
    Case(
        name="BERT, numbers",
        about="BertForSequenceClassification with one output: a regression by the mean squared error",
        module=bert_number,
        data=lambda: _padded("number"),
        samples=4,
        classifies=False,
        teacher=_network,
    ),
    Case(
        name="BERT, questions",
        about="BertForQuestionAnswering: two criteria, of the first and of the last token of an answer",
        module=bert_questions,
        data=lambda: _padded("answer"),
        samples=4,
        settings={"which": 0},
        teacher=_network,
        same_teacher=True,
        drawless=True,
    ),
    Case(
        name="T5",
        about="T5ForConditionalGeneration, padded, with labels of -100, which the decoder reads",
        module=t5,
        data=lambda: _padded("text"),
        samples=4,
        teacher=_network,
        same_teacher=True,
        drawless=True,
        evaluate=_evaluate(lambda: _padded("text")),
    ),
    Case(
        name="Mixtral",
        about="MixtralForCausalLM with two experts and their balancing loss",
        module=mixtral,
        data=lambda: _padded("text"),
        samples=4,
        teacher=_network,
        same_teacher=True,
    ),
    Case(
        name="GPT-2, counted tokens",
        about="GPT2LMHeadModel with `num_items_in_batch`: a sum divided by a number of the batch",
        module=gpt2,
        data=_counted,
        samples=4,
        teacher=_network,
        same_teacher=True,
        drawless=True,
        evaluate=_evaluate(lambda: _padded("text"), _shifted),
    ),
    Case(
        name="ViT, several labels",
        about="ViTForImageClassification with several labels for an image: binary cross entropy",
        module=vit_labels,
        data=_tagged,
        samples=4,
        classifies=False,
        teacher=_network,
    ),
    Case(
        name="SegFormer, one class",
        about="SegformerForSemanticSegmentation with one class: binary losses, masked after the criterion",
        module=lambda: segformer(1),
        data=lambda: _images(dense=True, labels=1),
        samples=4,
        classifies=False,
        settings={"head": "model.decode_head.classifier"},
        drawless=True,
        evaluate=_evaluate(lambda: _images(dense=True, labels=1), _one_class),
        teacher=_network,
    ),
    Case(
        name="ViT, some labels missing",
        about="ViTForImageClassification; the label of every fourth image is -100",
        module=vit,
        data=_partly_labelled,
        samples=3,
        teacher=_network,
        same_teacher=True,
    ),
    Case(
        name="ViT, accumulated",
        about="ViTForImageClassification with `accumulate_grad_batches=2` and clipped gradients",
        module=vit,
        data=lambda: _images(dense=False),
        samples=4,
        options={"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "max_epochs": 3},
        teacher=_network,
        same_teacher=True,
        drawless=True,
        evaluate=_evaluate(lambda: _images(dense=False)),
    ),
)
