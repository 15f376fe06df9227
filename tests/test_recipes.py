"""recipes.py: rows of the paper's Tables 9 and 11, and where the authors' scripts differ."""
import pytest

from model import GPT2Config, RobertaConfig
from recipes import recipe_for

LARGE = RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)


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


def test_other_methods_have_their_own_rates():
    assert recipe_for(GPT2Config(), "e2e", "full", "paper").lr == 5e-5
    assert recipe_for(RobertaConfig(), "mrpc", "full", "paper").epochs == 10


@pytest.mark.parametrize("config, task, message", [(GPT2Config(), "mrpc", "use a RoBERTa for GLUE"),
                                                   (RobertaConfig(), "e2e", "cannot generate text")])
def test_a_task_that_the_model_is_not_made_for_is_refused(config, task, message):
    with pytest.raises(ValueError, match=message):
        recipe_for(config, task, "lora", "paper")
