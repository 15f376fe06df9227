"""Numbers that others published, as plain data: the paper's tables and reproductions of them. Scores of GLUE and BLEU, METEOR
and ROUGE-L are in percent. A pair is (mean, ±) as printed; the paper calls its ± confidence intervals and does not say how
they were computed. Left out: where the paper and the authors' code disagree (docs/paper-and-code.md).

Sources: Hu et al. 2021, arXiv 2106.09685 v2, Tables 2, 3, 5, 16 and 18; issue n = github.com/microsoft/LoRA/issues/n;
FourierFT = Gao et al. 2024, its own runs of LoRA; RED = Wu et al. 2024, its own runs with PEFT.
"""

# Table 2, RoBERTa base, development sets, median of 5 seeds, best epoch; rows whose ± is None are copied from earlier work
GLUE_TASKS_OF_TABLE_2 = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
GLUE_SCORE = {"cola": "matthews", "stsb": "pearson"}                         # all others: accuracy
TABLE_2 = {
    "full": (87.6, 94.8, 90.2, 63.6, 92.8, 91.9, 78.7, 91.2),
    "BitFit": (84.7, 93.7, 92.7, 62.0, 91.8, 84.0, 81.5, 90.8),
    "LoRA": ((87.5, .3), (95.1, .2), (89.7, .7), (63.4, 1.2), (93.3, .3), (90.8, .1), (86.6, .7), (91.5, .2)),
}
# Table 3, GPT-2 medium, E2E test, mean of 3 seeds, "best epoch": BLEU, NIST, METEOR, ROUGE-L, CIDEr
TABLE_3 = {
    "full": (68.2, 8.62, 46.2, 71.0, 2.47),
    "last two layers": (68.1, 8.59, 46.0, 70.8, 2.41),
    "adapter-l": (66.3, 8.41, 45.0, 69.8, 2.40),
    "adapter-h": ((67.3, .6), (8.50, .07), (46.0, .2), (70.7, .2), (2.44, .01)),
    "prefix": (69.7, 8.81, 46.1, 71.4, 2.49),
    "LoRA": ((70.4, .1), (8.85, .02), (46.8, .2), (71.8, .1), (2.53, .02)),
}
# Table 18, GPT-2 medium, E2E, after 26,000 steps: rank -> validation loss, BLEU
TABLE_18 = {1: (1.23, 68.72), 2: (1.21, 69.17), 4: (1.18, 70.38), 8: (1.17, 69.57), 16: (1.16, 69.61), 32: (1.16, 69.33),
            64: (1.16, 69.24)}
# Table 5, GPT-3, 18 million parameters: targets -> WikiSQL (± .5), MultiNLI (± .1)
TABLE_5 = {"q": (70.4, 91.0), "k": (70.0, 90.8), "v": (73.0, 91.0), "o": (73.2, 91.3), "q k": (71.4, 91.3),
           "q v": (73.7, 91.3), "q k v o": (73.7, 91.7)}

# LoRA by other people on the same tasks and models: (who, score or (mean, ±))
OTHERS = {
    "e2e": (("issue 165, three users", 68.8), ("FourierFT", (68.9, .3)), ("RED, r = 8", (67.43, .39))),
    "mnli": (("RED", (86.6, .26)),),
    "sst2": (("RED", (93.9, .49)),),
    "mrpc": (("RED", (88.7, .76)), ("GraLoRA", 86.5)),
    "cola": (("RED", (59.7, 4.36)), ("one seed, OpenReview replication", 57.7)),
    "qnli": (("RED", (92.6, .10)),),
    "qqp": (("RED", (90.4, .08)),),
    "rte": (("RED, not from MNLI", (75.3, 2.79)), ("FourierFT", (78.4, .8))),
    "stsb": (("RED", (90.3, .54)), ("issue 151", 91.03)),
}

# MiniLM-L6-H384 (microsoft/unilm, minilm/README.md), fully fine-tuned, development sets: another checkpoint than ours
MINILM = {"cola": 47.5, "sst2": 91.5, "rte": 68.8, "mrpc": 88.9}

PAPER_MODELS = {"e2e": "gpt2-medium"}                                        # GLUE: roberta-base
# Hashes (tasks.fingerprint) of what the real development and test sets come to: E2E's texts, and GLUE's in RoBERTa's tokens
REAL_DATA = {
    "e2e": "cc9fa31672ac3eb7", "mrpc": "94cf15ce851e92a7", "cola": "f557ebd374c8114d", "rte": "d466b11e70baea7f",
    "stsb": "e6374c829edd57d9", "sst2": "47453d12fa48a7db",
}
