// What a source was asked for. Part of the explorer's module, joined by page.py.

class Fetched {
  constructor(source, schedule) {
    Object.assign(this, { source, schedule, kept: new Map(), means: new Map() });
  }
  // Asked once; again only where that failed.
  once(key, begin) {
    if (!this.kept.has(key)) {
      this.kept.set(key, begin());
      this.kept.get(key).catch(() => this.kept.delete(key));
    }
    return this.kept.get(key);
  }
  urls(subject, picture) {
    return this.once(`urls/${subject}/${picture}`, () => this.source.pictures(subject, picture));
  }
  // The matrix of a picture: [own, entropy] by `mixer/head`, and whether all that there is was asked for.
  matrix(subject, picture) {
    const key = `${subject}/${picture}`;
    if (!this.means.has(key)) this.means.set(key, { cells: new Map(), whole: false });
    return this.means.get(key);
  }
  map(picture, { subject, part, head }) {
    return this.once(`map/${subject}/${picture}/${part}/${head}`, async () => {
      const found = await this.source.map(subject, picture, part, head);
      if (!found) return null;
      if (found.means) this.matrix(subject, picture).cells.set(`${part}/${head}`, found.means);
      return new PackedMap(await inflate(found.bytes), this.schedule);
    });
  }
  // What the panels of a side show: map (null: not held), the picture after every scale, and the matrix as far as it is.
  async side(picture, side) {
    const [urls, map] = await Promise.all([this.urls(side.subject, picture), this.map(picture, side)]);
    const stages = await this.once(`stages/${side.subject}/${picture}`, () => Promise.all(urls.map(loadPicture)));
    return { map, stages, matrix: this.matrix(side.subject, picture) };
  }
  allMeans(picture, { subject }) {
    return this.once(`means/${subject}/${picture}`, async () => {
      const matrix = this.matrix(subject, picture), rows = await this.source.means(subject, picture);
      for (const [part, head, ...values] of rows) matrix.cells.set(`${part}/${head}`, values);
      matrix.whole = true;
    });
  }
}
