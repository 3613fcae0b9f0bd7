"""The stages that see full item pictures: regions, and joint with the teacher and all losses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from tigerfg.model.towers import TigerFG
from tigerfg.training.batches import BatchMaker, Crops, Scenes, Texts
from tigerfg.training.config import LossWeights
from tigerfg.training.distillation import (
    dense_loss,
    known_rows,
    map_loss,
    map_target_without_box,
    relation_loss,
)
from tigerfg.training.regions import crop_boxes, extent_masks
from tigerfg.training.second_look import second_look
from tigerfg.training.stages import (
    Encoded,
    Gathered,
    RowLoss,
    Trainee,
    encode_crops,
    on_device,
    region_embeddings,
    usable_rows,
)


@dataclass
class RegionBatch:
    """products and usable (B,), queries, item pictures, and more crops of the rows `paired`."""

    products: Tensor
    usable: Tensor
    crops: Crops
    more: Crops
    scenes: Scenes
    paired: Tensor  # (B,) bool: every other row of the whole batch


class RegionStage:
    """Stage regions: crop against the full picture pooled with the true region, and crop pairs."""

    def __init__(self, maker: BatchMaker, seed: int, size: int, device: torch.device) -> None:
        self.maker, self.seed, self.size, self.device = maker, seed, size, device
        self.skipped: Counter[str] = Counter()

    def make(self, step: int, rows: slice) -> RegionBatch:
        draw = self.maker.start(self.seed, step, self.size, rows)
        crops, more, scenes = draw.crops(), draw.crops(), draw.scenes()
        usable = usable_rows(self.skipped, crops.pixels, more.pixels, scenes.pixels, scenes.region)
        return RegionBatch(draw.products, usable, crops, more, scenes, draw.rows % 2 == 0)

    def prepare(self, made: RegionBatch) -> RegionBatch:
        return on_device(made, self.device)

    def encode(self, trainee: Trainee, batch: RegionBatch) -> Encoded:
        model, half = trainee.model, batch.paired.nonzero()[:, 0]
        queries = encode_crops(model, batch.crops)
        more = Crops(batch.more.pixels[half], batch.more.mask[half], batch.products[half])
        pairs = torch.zeros_like(queries).index_copy(0, half, encode_crops(model, more))
        scenes = batch.scenes
        patches = model.item_patches(scenes.pixels)
        encoded = region_embeddings(model, patches, scenes, batch.usable)
        encoded.embeddings.update(queries=queries, pairs=pairs)
        encoded.present.update(queries=batch.usable, pairs=batch.usable & batch.paired)
        return encoded

    def contrast(self, trainee: Trainee, batch: Gathered) -> dict[str, Tensor]:
        scale = trainee.logit_scale()
        return {
            "region": batch.pairs_loss(scale, "queries", "items", "others"),
            "nce": 0.5 * batch.pairs_loss(scale, "queries", "pairs"),
        }


@dataclass
class Lesson:
    """What the teacher says of a batch, without gradient.

    Attributes:
        queries, items: (B, E) its embeddings of the query crops and of the targets' crops.
        dense: (B, n, n, D) patch features of the targets' crops. extents: (B, 2) the crops' valid
            (w, h).
        region: (B, N) where the map should be, sum 1.
    """

    queries: Tensor
    items: Tensor
    dense: Tensor
    extents: Tensor
    region: Tensor


@dataclass
class JointRows:
    """products and usable (B,), queries, item pictures with texts."""

    products: Tensor
    usable: Tensor
    crops: Crops
    scenes: Scenes
    texts: Texts


@dataclass
class JointBatch(JointRows):
    """The same with the teacher's lesson."""

    lesson: Lesson


class JointStage:
    """Stage joint: the whole item tower with all losses.

    For the `clip` baseline (item_tower "global") there is no map to supervise, so only L_nce
    and L_rel apply. Pictures without a box have no part in L_region, L_dense and L_rel; their
    map follows the teacher's similarity of the query crop to the picture's patches.
    """

    def __init__(
        self,
        maker: BatchMaker,
        seed: int,
        size: int,
        device: torch.device,
        teacher: TigerFG,
        weights: LossWeights,
    ) -> None:
        self.maker, self.seed, self.size, self.device = maker, seed, size, device
        self.teacher, self.weights = teacher, weights
        self.skipped: Counter[str] = Counter()

    def make(self, step: int, rows: slice) -> JointRows:
        draw = self.maker.start(self.seed, step, self.size, rows)
        crops, scenes, texts = draw.crops(), draw.scenes(), draw.texts()
        usable = usable_rows(self.skipped, crops.pixels, scenes.pixels, scenes.region, scenes.boxes)
        return JointRows(draw.products, usable, crops, scenes, texts)

    def prepare(self, made: JointRows) -> JointBatch:
        rows = on_device(made, self.device)
        lesson = self._teach(rows.crops, rows.scenes, rows.usable)
        return JointBatch(**vars(rows), lesson=lesson)

    @torch.no_grad()
    def _teach(self, crops: Crops, scenes: Scenes, usable: Tensor) -> Lesson:
        config, teacher = self.teacher.config, self.teacher
        patch = config.vision.patch
        grid = config.query_side
        targets, extents = crop_boxes(scenes.pixels, scenes.boxes, config.query_size)
        patches = teacher.vision(torch.cat([crops.pixels, targets]))
        mask = torch.cat([crops.mask, extent_masks(extents, grid, patch)])
        queries, items = teacher.encode_region(patches, mask).chunk(2)
        dense = patches[len(queries) :].unflatten(1, (grid, grid))
        region = scenes.region.clone()
        unboxed = (~scenes.boxed & usable).nonzero()[:, 0]
        if len(unboxed) and self.weights.map > 0:
            query = teacher.pool(patches[unboxed], crops.mask[unboxed])
            item = teacher.item_patches(scenes.pixels[unboxed])
            region[unboxed] = map_target_without_box(
                query, item, self.weights.map_tau, teacher.item_mask(scenes.mask[unboxed])
            )
        return Lesson(queries, items, dense, extents, region)

    def encode(self, trainee: Trainee, batch: JointBatch) -> Encoded:
        model, weights, usable = trainee.model, self.weights, batch.usable
        scenes, texts, lesson = batch.scenes, batch.texts, batch.lesson
        queries, patches = encode_crops(model, batch.crops), model.item_patches(scenes.pixels)
        item = model.ground(patches, scenes.mask, texts.token_ids, texts.token_mask)
        boxed = usable & scenes.boxed
        if model.config.item_tower == "global" or weights.region == 0:
            encoded = Encoded({}, {})
        else:
            encoded = region_embeddings(model, patches, scenes, usable)
        encoded.embeddings.update(queries=queries, grounded=item.embedding)
        encoded.present.update(queries=usable, grounded=usable)
        if weights.relation > 0:
            encoded.embeddings.update(teacher_queries=lesson.queries, teacher_items=lesson.items)
            encoded.present.update(teacher_queries=boxed, teacher_items=boxed)
        if model.config.item_tower == "global":
            return encoded
        if weights.dense > 0:
            loss = dense_loss(
                patches,
                scenes.boxes,
                scenes.region,
                lesson.dense,
                lesson.extents,
                model.config.vision.patch,
                model.config.item_levels,
            )
            encoded.row_losses["dense"] = row_loss(weights.dense, loss, scenes.region)
        if weights.map > 0:
            loss = map_loss(item.grounding_map, lesson.region)
            encoded.row_losses["map"] = row_loss(weights.map, loss, lesson.region)
        if weights.crop > 0:
            looked = second_look(model, item, scenes.pixels, scenes.extents)
            encoded.embeddings["looked"], encoded.present["looked"] = looked, usable
        return encoded

    def contrast(self, trainee: Trainee, batch: Gathered) -> dict[str, Tensor]:
        scale, weights = trainee.logit_scale(), self.weights
        losses = {"nce": batch.pairs_loss(scale, "queries", "grounded")}
        if weights.relation > 0:
            *four, _ = batch.rows("queries", "grounded", "teacher_queries", "teacher_items")
            queries, items, teacher_queries, teacher_items = four
            losses["relation"] = weights.relation * relation_loss(
                queries,
                items,
                teacher_queries.detach(),
                teacher_items.detach(),
                weights.relation_tau,
            )
        if "items" in batch.embeddings:
            region = batch.pairs_loss(scale, "queries", "items", "others")
            losses["region"] = weights.region * region
        if "looked" in batch.embeddings:
            losses["crop"] = weights.crop * batch.pairs_loss(scale, "queries", "looked")
        return losses


def row_loss(weight: float, mean: Tensor, region: Tensor) -> RowLoss:
    """The weighted sum of a loss whose mean over the rows that have a region is `mean`."""
    rows = known_rows(region).sum().to(mean.dtype)
    return RowLoss(weight * mean * rows, rows)
