"""recipes.py: rows of the paper's Tables 9 and 11, and where the authors' scripts differ."""
import pytest

from experiments.recipes import main
from methods import METHODS
from model import BertConfig, GPT2Config, RobertaConfig
from training.recipes import recipe_for

LARGE = RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
SMALL = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12)


@pytest.mark.parametrize("config, task, column, batch_size, epochs, lr, alpha, max_length", [
    (RobertaConfig(), "mnli", "paper", 16, 30, 5e-4, 8, 512),
    (RobertaConfig(), "cola", "paper", 32, 80, 4e-4, 8, 512),
    (RobertaConfig(), "stsb", "paper", 16, 40, 4e-4, 8, 512),
    (RobertaConfig(), "wnli", "paper", 32, 80, 5e-4, 8, 512),
    (RobertaConfig(), "cola", "repo", 64, 80, 4e-4, 16, 512),
    (RobertaConfig(), "rte", "repo", 256, 80, 5e-4, 16, 512),
    (LARGE, "mrpc", "paper", 4, 20, 3e-4, 16, 512),
    (LARGE, "cola", "paper", 4, 20, 2e-4, 16, 128),
    (LARGE, "cola", "repo", 4, 20, 3e-4, 16, 128),
    (LARGE, "stsb", "repo", 4, 10, 3e-4, 16, 128)])
def test_glue_rows(config, task, column, batch_size, epochs, lr, alpha, max_length):
    recipe = recipe_for(config, task, "lora", column)
    assert (recipe.batch_size, recipe.epochs, recipe.lr, recipe.alpha, recipe.max_length) == (
        batch_size, epochs, lr, alpha, max_length)
    assert (recipe.rank, recipe.warmup, recipe.weight_decay, recipe.dropout) == (8, 0.06, 0.1, 0.0)
    assert recipe.lora_init == {"paper": "gaussian", "repo": "kaiming"}[column]


def test_e2e():
    paper, repo = (recipe_for(GPT2Config(), "e2e", "lora", column) for column in ("paper", "repo"))
    for recipe in (paper, repo):
        assert (recipe.lr, recipe.batch_size, recipe.epochs, recipe.warmup, recipe.weight_decay, recipe.label_smoothing,
                recipe.rank, recipe.alpha, recipe.dropout, recipe.beam_size) == (2e-4, 8, 5, 500, 0.01, 0.1, 4, 32, 0.1, 10)
    assert (paper.length_penalty, repo.length_penalty) == (0.9, 0.8)
    assert (paper.select, repo.select, paper.model_dropout, repo.model_dropout) == ("best", "last", None, 0.0)


@pytest.mark.parametrize("method, rank, expected", [                         # Li and Liang 2021, Table 5
    ("full", None, (5e-5, 10, 5)), ("last-layers", None, (5e-5, 10, 5)), ("prefix", None, (8e-5, 10, 5)),
    ("adapter-l", None, (8e-5, 5, 10)), ("adapter-l", 8, (8e-5, 5, 10)), ("adapter-l", 248, (5e-5, 5, 5))])
def test_gpt2_baselines_are_those_the_paper_took_over(method, rank, expected):
    recipe = recipe_for(GPT2Config(), "e2e", method, "paper", rank)
    assert (recipe.lr, recipe.batch_size, recipe.epochs) == expected
    assert recipe.source.startswith("Li and Liang 2021, Table 5") and recipe.source.endswith("LoRA paper, Table 11")
    assert recipe.rank == {"prefix": 5, "adapter-l": 224 if rank == 248 else 6}.get(method, 4)


def test_a_small_bert_has_numbers_of_this_project_and_a_large_one_robertas():
    found = recipe_for(SMALL, "mrpc", "lora", "paper")
    assert (found.lr, found.batch_size, found.epochs, found.max_length, found.rank, found.alpha) == (2e-3, 16, 3, 128, 8, 8)
    assert "this project's choice" in found.source
    assert recipe_for(SMALL, "mrpc", "full", "paper").lr == 1e-4 and recipe_for(SMALL, "cola", "head", "paper").lr == 2e-3
    for method in ("lora", "full"):
        assert recipe_for(BertConfig(), "mrpc", method, "repo") == recipe_for(RobertaConfig(), "mrpc", method, "repo")


@pytest.mark.parametrize("method", [method for method in METHODS if method != "lora"])
@pytest.mark.parametrize("config, task", [(GPT2Config(), "e2e"), (RobertaConfig(), "mrpc"), (SMALL, "mrpc")])
def test_every_method_has_a_recipe_that_names_its_source(config, task, method):
    if task == "e2e" and method == "head":
        return                                                               # GPT-2 has no task head
    recipe = recipe_for(config, task, method, "paper")
    assert recipe.source != recipe_for(config, task, "lora", "paper").source
    assert ("this project's choice" in recipe.source) == ("Liu" not in recipe.source and "Li and" not in recipe.source)


def test_the_command_prints_every_task_and_disagreement(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    for line in ("| mrpc | 0.0004 | 16 / 128 | 30 | `--init-adapter` of MNLI |", "| cola | 0.0004 | 32 / 64 | 80 | the base |",
                 "| stsb | 0.0002 / 0.0003 | 8 / 4 | 30 / 10 | 512 / 128 | `--init-adapter` of MNLI |",
                 "| gpt2 | prefix | 8e-05 | 10 | 5 | 5 | Li and Liang 2021, Table 5 |"):
        assert line in text.splitlines()
    for disagreement in ("length_penalty 0.9 / 0.8", "alpha 8 / 16", "lora_init gaussian / kaiming", "select best / last",
                         "model_dropout the model's / 0"):
        assert disagreement in text
    assert text.count("\n| mnli |") == text.count("\n| rte |") == 2           # base and large


@pytest.mark.parametrize("config, task, message", [(GPT2Config(), "mrpc", "use a RoBERTa or BERT for GLUE"),
                                                   (RobertaConfig(), "e2e", "cannot generate text")])
def test_a_task_that_the_model_is_not_made_for_is_refused(config, task, message):
    with pytest.raises(ValueError, match=message):
        recipe_for(config, task, "lora", "paper")
